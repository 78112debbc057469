"""Freezing as optax transformations, and the optimizer state across a phase boundary."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from freezejax.errors import UserError
from freezejax.guard import fields, guarded, state_owners
from freezejax.masks import check_shared_arrays, check_static
from freezejax.partition import partition
from freezejax.paths import PyTree, by_path, path_string
from freezejax.schedules import FreezeSchedule

OnThaw = Literal["restart", "keep"]


class _Frozen(optax.GradientTransformationExtraArgs):
    """What `freeze` returns, so that `migrate` knows it."""


def freeze(tx: optax.GradientTransformation, mask: PyTree) -> optax.GradientTransformationExtraArgs:
    """`tx` for the trainable leaves, no update and no state for the frozen ones (an `optax.multi_transform`).

    It takes whole trees or the trainable half of `partition` (None where frozen) as gradients and parameters, with
    the same state. Everything in `tx`, a gradient-norm clip included, sees trainable leaves only. A tree that is
    callable (a module with `__call__`) is never called: `tx` sees the dict of its fields, with the same leaf paths.

    Raises:
      UserError: `mask` is no tree of Python bools, or (at init) has not the leaves of the parameters; (at update) the
        state or a half was made under another mask, or `tx` would mix `rows` of an array with rows that are not there.

    >>> params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    >>> tx = freeze(optax.lion(0.1, weight_decay=0.1), {"w": True, "b": False})
    >>> tx.update(params, tx.init(params), params)[0]["b"]
    Array([-0., -0.], dtype=float32)
    """
    check_static(mask, mask)
    labels = jax.tree.map(lambda m: "trainable" if m else "frozen", fields(mask))
    # Not optax.set_to_zero, which adds +0.0 and turns a frozen -0.0 into 0.0: x + -0.0 is x, bit for bit.
    frozen = optax.stateless(lambda updates, _: jax.tree.map(lambda u: jnp.full_like(u, -0.0), updates))
    inner = guarded(optax.multi_transform({"trainable": tx, "frozen": frozen}, labels))

    def init(params: PyTree) -> Any:
        check_static(fields(mask), fields(params))
        return inner.init(params)

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        remedy = "give value_and_grad and partition the mask of freeze"
        _check_holds(mask, updates, f"freeze: leaf {{!r}} trains, but the gradient holds nothing there; {remedy}")
        _check_holds(mask, params, f"freeze: leaf {{!r}} trains, but params hold nothing there; {remedy}")
        try:
            return inner.update(updates, state, params, **extra)
        except (AttributeError, TypeError, ValueError):
            made = jax.eval_shape(inner.init, updates if params is None else params)
            if isinstance(state, dict):
                told = "is a dict; load a checkpoint with freeze(tx, mask).init(params) as its template"
            elif by_path(made).keys() != by_path(state).keys():
                call = "freezejax.migrate(state, old_mask, new_mask, tx=tx, params=params)"
                told = f"was made under another mask; at the boundary call {call}"
            else:
                raise
            raise UserError(f"freeze: the optimizer state {told}") from None

    return _Frozen(init, update)


class ScheduledFreezeState(NamedTuple):
    """State of `scheduled_freeze`: the step (int32 scalar) and the wrapped state of every leaf."""

    step: jax.Array
    inner: Any


def scheduled_freeze(
    tx: optax.GradientTransformation, schedule: FreezeSchedule, *, on_thaw: OnThaw = "restart"
) -> optax.GradientTransformationExtraArgs:
    """The step-dependent mask as one transformation, usable inside one jit, `lax.scan` and `vmap`.

    For sweeps with `vmap`, and to check static phases against: every gradient is computed and every leaf keeps its
    state. To `tx` a frozen leaf looks like a zero weight with a zero gradient and fresh state, so statistics that *sum*
    over leaves (norms, clips) see trainable leaves only. What depends on their *number* (the key that
    `optax.add_noise` splits) differs from `freeze`. A step of the schedule is an update; of `on_thaw` see `migrate`.

    Raises:
      UserError: the schedule holds fractions; resolve it first.

    >>> schedule = FreezeSchedule([(0, [("w", False)]), (1, [("w", True)])])
    >>> tx, params = scheduled_freeze(optax.sgd(0.5), schedule), {"w": jnp.ones(1)}
    >>> tx.update({"w": jnp.ones(1)}, tx.init(params), params)[0]["w"]
    Array([-0.], dtype=float32)
    """
    if not schedule.resolved:
        raise UserError("scheduled_freeze: schedule holds fractions; call schedule.resolve(total_steps) first")
    _check_on_thaw(on_thaw)
    tx = guarded(tx)

    def init(params: PyTree) -> ScheduledFreezeState:
        check_shared_arrays(params, schedule.masks(params))
        return ScheduledFreezeState(jnp.zeros([], jnp.int32), tx.init(params))

    def update(
        updates: PyTree, state: ScheduledFreezeState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ScheduledFreezeState]:
        masks = schedule.masks(updates)
        mask = schedule.select(masks, state.step)
        keeps = mask
        if on_thaw == "restart":
            before = schedule.select(masks, jnp.maximum(state.step - 1, 0))
            keeps = jax.tree.map(jnp.logical_and, mask, before)
        shown_updates = _or_fill(mask, updates, 0)
        shown_params = None if params is None else _or_fill(mask, params, 0)
        fresh = tx.init(shown_updates if params is None else shown_params)
        owners = state_owners(tx, updates, fresh)
        inner = _where_owned(keeps, owners, state.inner, fresh)
        new_updates, inner = tx.update(shown_updates, inner, shown_params, **extra)
        inner = _where_owned(mask, owners, inner, state.inner)
        return _or_fill(mask, new_updates, -0.0), ScheduledFreezeState(state.step + 1, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def migrate(
    opt_state: Any,
    old_mask: PyTree,
    new_mask: PyTree,
    *,
    tx: optax.GradientTransformation,
    params: PyTree,
    on_thaw: OnThaw = "restart",
    kept: Mapping[str, jax.Array] | None = None,
) -> tuple[Any, dict[str, jax.Array]]:
    """State of `freeze(tx, new_mask)` made from that of `freeze(tx, old_mask)`, at the boundary of two phases.

    Survivors keep their moments, frozen leaves release theirs, step counts run on. A thawed leaf starts
    afresh (`on_thaw="restart"`) or with the state it was frozen with (`"keep"`). `params` are the whole parameters.

    Returns:
      The new state, and under "keep" the held state of frozen leaves by state path: the argument `kept` of the next
      call. At the first boundary `kept` is `{}`.

    Raises:
      UserError: `opt_state` is not a state of `freeze(tx, old_mask)`, `tx` is frozen, a mask does not fit `params`, or
        a leaf thaws with "keep" and `kept` is not given.

    >>> params, tx = {"w": jnp.ones(2), "b": jnp.ones(2)}, optax.adam(0.1)
    >>> both, only_w = {"w": True, "b": True}, {"w": True, "b": False}
    >>> state, _ = migrate(freeze(tx, both).init(params), both, only_w, tx=tx, params=params)
    >>> state.inner_states["trainable"].inner_state[0].mu
    {'b': MaskedNode(), 'w': Array([0., 0.], dtype=float32)}
    """
    _check_on_thaw(on_thaw)
    if isinstance(tx, _Frozen):
        raise UserError("migrate: tx is frozen already; pass the optimizer that was given to freeze")
    whole = jax.tree.map(lambda _: True, old_mask)
    _check_holds(whole, params, "migrate: params hold nothing at leaf {!r}; give all, combine(trainable, frozen)")
    old, fresh_state = by_path(opt_state), freeze(tx, new_mask).init(partition(params, new_mask)[0])
    made, bare = (by_path(jax.eval_shape(of.init, params)).keys() for of in (freeze(tx, old_mask), guarded(tx)))
    if old.keys() != made:
        alone = f"leaf {min(old.keys() ^ made)!r} is in one alone; pass the tx and the mask that it was made with"
        told = "it is one of tx itself; make it with freeze" if old.keys() == bare else alone
        raise UserError(f"migrate: opt_state is not a state of freeze(tx, old_mask): {told}")
    if on_thaw == "keep" and kept is None:
        remedy = "pass the second value that the migrate before returned, or kept={{}} if the leaf never trained"
        told = f"migrate: leaf {{!r}} thaws with on_thaw='keep', but kept is not given: {remedy}"
        _check_holds(new_mask, partition(old_mask, old_mask)[0], told)
    held = {**(kept or {}), **old} if on_thaw == "keep" else old
    fresh = by_path(fresh_state)
    leaves = [held.get(path, leaf) for path, leaf in fresh.items()]
    released = {path: held[path] for path in sorted(held.keys() - fresh.keys())}
    return jax.tree.unflatten(jax.tree.structure(fresh_state), leaves), released if on_thaw == "keep" else {}


def _check_holds(mask: PyTree, tree: PyTree, told: str) -> None:
    """Refuses a tree that holds None at a leaf where the mask is True: what is `told`, of the path."""

    def check(path: Any, trains: bool, leaf: Any) -> None:
        if trains and leaf is None:
            raise UserError(told.format(path_string(path)))

    if tree is not None:
        jax.tree_util.tree_map_with_path(check, fields(mask), fields(tree))


def _where_owned(mask: PyTree, owners: list[int | None], yes: Any, no: Any) -> Any:
    """Of two optimizer states: `yes` where a parameter's mask is True, and where a leaf belongs to none."""
    trains, (leaves, structure) = jax.tree.leaves(mask), jax.tree.flatten(yes)
    states = zip(owners, leaves, jax.tree.leaves(no), strict=True)
    picked = [new if owner is None else jnp.where(trains[owner], new, old) for owner, new, old in states]
    return jax.tree.unflatten(structure, picked)


def _or_fill(mask: PyTree, tree: PyTree, value: float) -> PyTree:
    return jax.tree.map(lambda trains, leaf: jnp.where(trains, leaf, jnp.full_like(leaf, value)), mask, tree)


def _check_on_thaw(on_thaw: str) -> None:
    if on_thaw not in ("restart", "keep"):
        raise UserError(f"on_thaw={on_thaw!r}; use 'restart' or 'keep'")
