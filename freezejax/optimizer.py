"""Freezing as optax transformations, and the optimizer state across a phase boundary."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from freezejax.errors import UserError
from freezejax.masks import check_static
from freezejax.partition import partition
from freezejax.paths import PyTree
from freezejax.schedules import FreezeSchedule

OnThaw = Literal["restart", "keep"]


def freeze(tx: optax.GradientTransformation, mask: PyTree) -> optax.GradientTransformationExtraArgs:
    """`tx` for the trainable leaves, no update and no state for the frozen ones.

    `optax.multi_transform` with the labels `trainable` and `frozen`. It takes whole trees or the
    trainable half of `partition` (None where frozen) as gradients and parameters, with the same state.
    Everything in `tx`, a gradient-norm clip included, sees trainable leaves only.

    Raises:
      UserError: `mask` holds tracers or other things than Python bools, or (at init) does not have the
        leaves of the parameters.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    >>> tx = freeze(optax.lion(0.1, weight_decay=0.1), {"w": True, "b": False})
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["b"]
    Array([1., 1.], dtype=float32)
    """
    check_static(mask, mask)
    labels = jax.tree.map(lambda m: "trainable" if m else "frozen", mask)
    inner = optax.multi_transform({"trainable": tx, "frozen": _set_to_negative_zero()}, labels)

    def init(params: PyTree) -> Any:
        check_static(mask, params)
        return inner.init(params)

    return optax.GradientTransformationExtraArgs(init, inner.update)


def _set_to_negative_zero() -> optax.GradientTransformation:
    # optax.set_to_zero adds +0.0, which turns a frozen -0.0 into 0.0. x + -0.0 is x, bit for bit.
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u: jnp.full_like(u, -0.0), updates))


class ScheduledFreezeState(NamedTuple):
    """State of `scheduled_freeze`: the step (int32 scalar) and the wrapped state of every leaf.

    >>> ScheduledFreezeState(step=0, inner=None).step
    0
    """

    step: jax.Array | int
    inner: Any


def scheduled_freeze(
    tx: optax.GradientTransformation, schedule: FreezeSchedule, *, on_thaw: OnThaw = "restart"
) -> optax.GradientTransformationExtraArgs:
    """The step-dependent mask as one transformation, usable inside one jit, `lax.scan` and `vmap`.

    The oracle of the static phases and the form to vmap over. It saves nothing: every gradient is
    computed and every leaf keeps its state. To `tx` a frozen leaf looks like a zero weight with a zero
    gradient and fresh state, so statistics that *sum* over leaves (norms, clips) see trainable leaves only.
    What depends on the *number* of leaves (`optax.add_noise` splits its key by it) differs from `freeze`.

    Args:
      tx: any optax transformation.
      schedule: a resolved `FreezeSchedule`; its step is the number of updates so far.
      on_thaw: "restart" gives a thawed leaf fresh state, "keep" the state it was frozen with.

    Raises:
      UserError: the schedule holds fractions.

    >>> schedule = FreezeSchedule([(0, [("w", True)]), (1, [("w", False)])])
    >>> tx, params = scheduled_freeze(optax.sgd(0.5), schedule), {"w": jnp.ones(1)}
    >>> state = tx.init(params)
    >>> for _ in range(3):
    ...     updates, state = tx.update({"w": jnp.ones(1)}, state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> params["w"]
    Array([0.5], dtype=float32)
    """
    if not schedule.resolved:
        raise UserError("scheduled_freeze: schedule holds fractions; call schedule.resolve(total_steps) first")
    _check_on_thaw(on_thaw)
    tx = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> ScheduledFreezeState:
        return ScheduledFreezeState(jnp.zeros([], jnp.int32), tx.init(params))

    def update(
        updates: PyTree, state: ScheduledFreezeState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ScheduledFreezeState]:
        mask = schedule.mask_at(updates, state.step)
        previous = schedule.mask_at(updates, jnp.maximum(state.step - 1, 0))
        thawed = jax.tree.map(lambda now, before: now & ~before, mask, previous)
        shown_updates = _where(mask, updates, jax.tree.map(jnp.zeros_like, updates))
        shown_params = None if params is None else _where(mask, params, jax.tree.map(jnp.zeros_like, params))
        fresh = tx.init(shown_updates if params is None else shown_params)
        owners = state_owners(tx, updates, fresh)

        def shown(owner: Any, held: jax.Array, new: jax.Array) -> jax.Array:
            if owner is None:
                return held
            keeps = owner(mask) & ~owner(thawed) if on_thaw == "restart" else owner(mask)
            return jnp.where(keeps, held, new)

        def held(owner: Any, new: jax.Array, old: jax.Array) -> jax.Array:
            return new if owner is None else jnp.where(owner(mask), new, old)

        inner = _map_owned(shown, owners, state.inner, fresh)
        new_updates, inner = tx.update(shown_updates, inner, shown_params, **extra)
        new_updates = _where(mask, new_updates, jax.tree.map(lambda u: jnp.full_like(u, -0.0), new_updates))
        inner = _map_owned(held, owners, inner, state.inner)
        return new_updates, ScheduledFreezeState(state.step + 1, inner)

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
    """State of `freeze(tx, new_mask)` made from that of `freeze(tx, old_mask)`.

    Survivors keep their moments, frozen leaves release theirs, step counts run on. A thawed leaf starts
    afresh (`on_thaw="restart"`) or with the state it was frozen with (`"keep"`).

    Args:
      opt_state: state of `freeze(tx, old_mask)`.
      old_mask: mask of the phase that ends.
      new_mask: mask of the phase that begins.
      tx: the wrapped transformation.
      params: the whole parameters at the boundary.
      on_thaw: "restart" or "keep".
      kept: what the previous call returned; state held for frozen leaves under "keep".

    Returns:
      The new state, and the held state of frozen leaves by state path (empty under "restart").

    Raises:
      UserError: `opt_state` is not a state of `freeze(tx, old_mask)`, or a mask does not fit `params`.

    >>> params, tx = {"w": jnp.ones(2), "b": jnp.ones(2)}, optax.adam(0.1)
    >>> both, only_w = {"w": True, "b": True}, {"w": True, "b": False}
    >>> state, kept = migrate(freeze(tx, both).init(params), both, only_w, tx=tx, params=params)
    >>> state.inner_states["trainable"].inner_state[0].mu
    {'b': MaskedNode(), 'w': Array([0., 0.], dtype=float32)}
    """
    _check_on_thaw(on_thaw)
    expected = jax.eval_shape(freeze(tx, old_mask).init, params)
    if _by_path(expected).keys() != _by_path(opt_state).keys():
        raise UserError("migrate: opt_state is not a state of freeze(tx, old_mask): pass the mask it was made with")
    old = _by_path(opt_state)
    held = {**(kept or {}), **old} if on_thaw == "keep" else old
    fresh = freeze(tx, new_mask).init(partition(params, new_mask)[0])
    new_state = jax.tree_util.tree_map_with_path(lambda path, leaf: held.get(jax.tree_util.keystr(path), leaf), fresh)
    released = held.keys() - _by_path(new_state).keys()
    return new_state, {path: held[path] for path in sorted(released)} if on_thaw == "keep" else {}


def state_owners(tx: optax.GradientTransformation, params: PyTree, state: Any) -> list[Any]:
    """For every leaf of an optimizer state, the parameter leaf it belongs to.

    A state leaf belongs to the parameter with which it vanishes from `tx.init`. Counts and schedules have
    no owner: they are there without any parameter. Owners are read off in binary, so this takes log2 of
    the number of leaves calls of `tx.init`, none of which computes anything.

    Returns:
      One entry per leaf of `state`: None, or a function that picks the owner's leaf from a tree like
      `params`.

    >>> params = {"w": jnp.ones(3)}
    >>> owners = state_owners(optax.adam(0.1), params, optax.adam(0.1).init(params))
    >>> [owner and owner({"w": "mine"}) for owner in owners]
    [None, 'mine', 'mine']
    """
    leaves, structure = jax.tree.flatten(params)

    def paths_without(absent: Callable[[int], bool]) -> set[str]:
        kept = [optax.MaskedNode() if absent(index) else leaf for index, leaf in enumerate(leaves)]
        return set(_by_path(jax.eval_shape(tx.init, jax.tree.unflatten(structure, kept))))

    shared = paths_without(lambda index: True)
    bits = range((len(leaves) - 1).bit_length())
    present = [paths_without(lambda index, bit=bit: bool(index >> bit & 1)) for bit in bits]  # type: ignore[misc]

    def owner(path: str) -> Any:
        if path in shared:
            return None
        index = sum((path not in present[bit]) << bit for bit in bits)
        return lambda tree: jax.tree.leaves(tree)[index]

    return [owner(path) for path in _by_path(state)]


def _map_owned(fn: Any, owners: list[Any], tree: Any, other: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    pairs = zip(owners, leaves, jax.tree.leaves(other), strict=True)
    return jax.tree.unflatten(structure, [fn(owner, leaf, rest) for owner, leaf, rest in pairs])


def _by_path(tree: Any) -> dict[str, jax.Array]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _where(mask: PyTree, yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(jnp.where, mask, yes, no)


def _check_on_thaw(on_thaw: str) -> None:
    if on_thaw not in ("restart", "keep"):
        raise UserError(f"on_thaw={on_thaw!r}; use 'restart' or 'keep'")
