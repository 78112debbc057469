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
from freezejax.paths import PyTree, by_path
from freezejax.schedules import FreezeSchedule

OnThaw = Literal["restart", "keep"]


def freeze(tx: optax.GradientTransformation, mask: PyTree) -> optax.GradientTransformationExtraArgs:
    """`tx` for the trainable leaves, no update and no state for the frozen ones (an `optax.multi_transform`).

    It takes whole trees or the trainable half of `partition` (None where frozen) as gradients and parameters, with
    the same state. Everything in `tx`, a gradient-norm clip included, sees trainable leaves only. A tree that is
    callable (a module with `__call__`) is never called: `tx` sees the dict of its fields, with the same leaf paths.

    Raises:
      UserError: `mask` is no tree of Python bools, or (at init) has not the leaves of the parameters; (at update) the
        state was made under another mask, or `tx` would mix the `rows` of an array with rows that are not there.

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
        try:
            return inner.update(updates, state, params, **extra)
        except (AttributeError, TypeError, ValueError):
            made = jax.eval_shape(inner.init, updates if params is None else params)
            if by_path(made).keys() == by_path(state).keys():
                raise
            raise UserError(
                "freeze: the optimizer state was made under another mask; at the boundary call freezejax.migrate("
                "state, old_mask, new_mask, tx=tx, params=params)"
            ) from None

    return optax.GradientTransformationExtraArgs(init, update)


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
      UserError: `opt_state` is not a state of `freeze(tx, old_mask)`, a mask does not fit `params`, or a leaf
        thaws with "keep" and `kept` is not given.

    >>> params, tx = {"w": jnp.ones(2), "b": jnp.ones(2)}, optax.adam(0.1)
    >>> both, only_w = {"w": True, "b": True}, {"w": True, "b": False}
    >>> state, _ = migrate(freeze(tx, both).init(params), both, only_w, tx=tx, params=params)
    >>> state.inner_states["trainable"].inner_state[0].mu
    {'b': MaskedNode(), 'w': Array([0., 0.], dtype=float32)}
    """
    _check_on_thaw(on_thaw)
    old, fresh_state = by_path(opt_state), freeze(tx, new_mask).init(partition(params, new_mask)[0])
    if by_path(jax.eval_shape(freeze(tx, old_mask).init, params)).keys() != old.keys():
        raise UserError("migrate: opt_state is not a state of freeze(tx, old_mask): pass the mask it was made with")
    if on_thaw == "keep" and kept is None:
        _check_nothing_thaws(old_mask, new_mask)
    held = {**(kept or {}), **old} if on_thaw == "keep" else old
    fresh = by_path(fresh_state)
    leaves = [held.get(path, leaf) for path, leaf in fresh.items()]
    released = {path: held[path] for path in sorted(held.keys() - fresh.keys())}
    return jax.tree.unflatten(jax.tree.structure(fresh_state), leaves), released if on_thaw == "keep" else {}


def _check_nothing_thaws(old_mask: PyTree, new_mask: PyTree) -> None:
    for (path, now), before in zip(by_path(new_mask).items(), jax.tree.leaves(old_mask), strict=True):
        if now and not before:
            raise UserError(
                f"migrate: leaf {path!r} thaws with on_thaw='keep', but kept is not given: pass the second value that "
                "the migrate before returned, or kept={} if the leaf never trained"
            )


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
