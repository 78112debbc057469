"""Freeze schedules: which leaves are trainable from which step on."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from freezejax.errors import UserError
from freezejax.masks import Rules, check_rules, check_shared_arrays, compile_pattern, masks_of, matcher
from freezejax.paths import PyTree, check_known, leaf_paths, nearest


class Phase(NamedTuple):
    """Steps `start <= step < stop`, through which one static mask holds.

    >>> Phase(0, 100, {"w": True}).stop
    100
    """

    start: int
    stop: int
    mask: PyTree


@dataclasses.dataclass(frozen=True)
class FreezeSchedule:
    """What is trainable from which step on: ordered `(start, rules)` entries.

    `start` is a step (int) or a fraction of the run (float in (0, 1)). The first entry starts at 0;
    each entry replaces the one before it, so freeze, thaw and re-freeze are just entries. `rules` are
    those of `trainable_mask`.

    Raises:
      UserError: no entries, a first start other than 0, a negative step, a fraction outside (0, 1), or
        starts that do not increase (phases would overlap).

    >>> schedule = FreezeSchedule([(0, [(".*", True)]), (1 / 3, [(".*/gate", False), (".*", True)])])
    >>> schedule.phases({"mlp": {"gate": 1.0, "up": 2.0}}, 300)[1]
    Phase(start=100, stop=300, mask={'mlp': {'gate': False, 'up': True}})
    """

    entries: Sequence[tuple[int | float | jax.Array, Rules]]
    # Of `by_groups`, where a later event may decide all that an earlier one had decided: pairs of (name, pattern) of
    # groups that one event sends different ways, so that no leaf may be in both.
    disagreeing: frozenset[tuple[tuple[str, str], tuple[str, str]]] | None = None

    def __post_init__(self) -> None:
        """Freezes the entries into tuples and checks them."""
        try:
            given = [(at.item() if isinstance(at, np.generic) else at, tuple(rules)) for at, rules in self.entries]
        except (TypeError, ValueError):
            told = f"schedule entries {self.entries!r}: each is (start, [(pattern, trainable), ...])"
            raise UserError(told) from None
        object.__setattr__(self, "entries", tuple((start, check_rules(rules)) for start, rules in given))
        starts = [start for start, _ in given]
        for start in starts:
            _check_start(start)
        if not starts or isinstance(starts[0], jax.Array) or starts[0] != 0:
            raise UserError("schedule: the first entry must start at step 0, to say what trains at first")
        # Where steps lie among fractions is known once the length of the run is, and where arrays lie in the program.
        for kind in (int, float):
            own = [start for start in starts if isinstance(start, kind)]
            _check_increasing(own, own)

    @property
    def resolved(self) -> bool:
        """True when every start is a step."""
        return all(not isinstance(start, float) for start, _ in self.entries)

    def resolve(self, total_steps: int) -> "FreezeSchedule":
        """The same schedule with every fraction turned into a step of a run of `total_steps`.

        Raises:
          UserError: a length that is no positive int, a start beyond the end of the run, or two entries on one step.
        """
        if isinstance(total_steps, bool) or not isinstance(total_steps, int | np.integer) or total_steps < 1:
            raise UserError(f"schedule: total_steps={total_steps!r} is not a positive number of steps")
        starts, told = [], []
        for given, _ in self.entries:
            if isinstance(given, jax.Array):
                raise UserError("schedule: an array as a start has no static phase; give ints, or scheduled_freeze it")
            starts.append(round(given * total_steps) if isinstance(given, float) else given)
            told.append(f"{given} (rounds to step {starts[-1]})" if isinstance(given, float) else f"{given}")
            if starts[-1] >= total_steps:
                last = f"the last usable step is {total_steps - 1}"
                raise UserError(f"schedule: start {told[-1]} lies beyond the run of {total_steps} steps; {last}")
        _check_increasing(starts, told, f" in a run of {total_steps} steps")
        entries = [(start, rules) for start, (_, rules) in zip(starts, self.entries, strict=True)]
        return dataclasses.replace(self, entries=entries)

    def phases(self, params: PyTree, total_steps: int) -> list[Phase]:
        """Static phases of a run: what the loop compiles, in order; raises what `resolve` and `masks` raise."""
        starts = [int(start) for start, _ in self.resolve(total_steps).entries]
        masks = self.masks(params)
        check_shared_arrays(params, masks)
        return list(map(Phase, starts, [*starts[1:], total_steps], masks))

    def masks(self, params: PyTree) -> list[PyTree]:
        """The mask of each entry, whatever its start; raises what `trainable_mask` and `by_groups` raise of rules."""
        if self.disagreeing:
            _check_apart(self.disagreeing, leaf_paths(params))
        return masks_of(params, [rules for _, rules in self.entries], overruled=self.disagreeing is not None)

    def mask_at(self, params: PyTree, step: Any) -> PyTree:
        """Mask at `step` as a tree of bool scalars; `step` may be traced (jit, scan, vmap).

        Past the last start the last entry holds for ever. A start may be an integer array too, traced or
        not, so that a sweep over freeze steps is one `vmap` (then starts are taken to increase, unchecked).
        Fractions have to be resolved first.

        >>> at = lambda start: FreezeSchedule([(0, [("w", True)]), (start, [("w", False)])]).mask_at({"w": 1.0}, 3)["w"]
        >>> jax.vmap(at)(jnp.array([2, 3, 4]))
        Array([False, False,  True], dtype=bool)
        """
        masks = self.masks(params)
        check_shared_arrays(params, masks)
        return self.select(masks, step)

    def select(self, masks: Sequence[PyTree], step: Any) -> PyTree:
        """Of what `masks` returns, the mask at `step`, as `mask_at` gives it."""
        if not self.resolved:
            raise UserError("schedule holds fractions of a run: call schedule.resolve(total_steps) first")
        starts = jnp.stack([jnp.asarray(start, dtype=jnp.int32) for start, _ in self.entries])
        entry = jnp.sum(jnp.asarray(step, dtype=jnp.int32) >= starts) - 1
        return chosen(masks, entry)


def chosen(masks: Sequence[PyTree], entry: jax.Array) -> PyTree:
    """Of some masks that of a traced number: a tree of bool scalars."""
    # Most leaves of a large tree freeze and thaw together: one look-up serves all of them.
    by_leaf = list(zip(*map(jax.tree.leaves, masks), strict=True))
    now = {trains: jnp.asarray(trains)[entry] for trains in dict.fromkeys(by_leaf)}
    return jax.tree.unflatten(jax.tree.structure(masks[0]), [now[trains] for trains in by_leaf])


def by_groups(groups: Mapping[str, str], events: Sequence[tuple[int | float, Mapping[str, bool]]]) -> FreezeSchedule:
    """Schedule over named module groups: everything trains until an event says otherwise.

    `groups` are patterns of leaf paths by name, `events` are `(start, {group: trainable})` in order. A group keeps its
    state until an event names it. Where groups of different events overlap, the latest event wins.

    Raises:
      UserError: an event names an unknown group; or (when masks are made) freezes one group and thaws another, and
        they share a leaf.

    >>> schedule = by_groups({"gate": ".*/gate"}, [(10, {"gate": False}), (20, {"gate": True})])
    >>> [start for start, _ in schedule.entries]
    [0, 10, 20]
    """
    trains = {".*": True}  # the pattern named last stands last, and comes first among the rules
    entries: list[tuple[int | float, Rules]] = []
    disagreeing = set()
    for start, changes in events:
        for name, trainable in changes.items():
            check_known(name, groups, f"schedule: no group is named {name!r}", count=3)
            trains.pop(groups[name], None)
            trains[groups[name]] = trainable
        entries.append((start, list(reversed(trains.items()))))
        pairs = itertools.combinations(sorted((name, groups[name]) for name in changes), 2)
        disagreeing |= {(one, other) for one, other in pairs if changes[one[0]] != changes[other[0]]}
    if not entries or entries[0][0] != 0:
        entries.insert(0, (0, [(".*", True)]))
    return FreezeSchedule(entries, frozenset(disagreeing))


def layer_by_layer(
    params: PyTree, starts: Sequence[int | float], *, pattern: str = r"blocks/(\d+)/.*", order: str = "bottom"
) -> FreezeSchedule:
    """Freezes one layer more at each of `starts`, from the bottom (layer 0 first) or from the top.

    `starts` are steps or fractions, increasing, at most one per layer; the first group of `pattern` captures the layer
    number in a leaf path; `order` is "bottom" or "top".

    Raises:
      UserError: no leaf matches, no number is captured, more starts than layers, or an unknown order.

    >>> params = {"blocks": {0: {"w": 1.0}, 1: {"w": 2.0}}}
    >>> schedule = layer_by_layer(params, [5], order="top")
    >>> [phase.mask["blocks"] for phase in schedule.phases(params, 10)]
    [{0: {'w': True}, 1: {'w': True}}, {0: {'w': True}, 1: {'w': False}}]
    """
    if order not in ("bottom", "top"):
        raise UserError(f"layer_by_layer: order={order!r}; use 'bottom' or 'top'")
    members = _paths_by_layer(leaf_paths(params), pattern)
    layers = sorted(members, reverse=order == "top")
    if len(starts) > len(layers):
        raise UserError(f"layer_by_layer: {len(starts)} starts for {len(layers)} layers; give at most one each")
    groups = {str(layer): "|".join(map(re.escape, members[layer])) for layer in layers}
    return by_groups(groups, [(at, {str(n): False}) for at, n in zip(starts, layers, strict=False)])


def _paths_by_layer(paths: list[str], pattern: str) -> dict[int, list[str]]:
    compiled, members = compile_pattern(pattern), dict[int, list[str]]()
    for path in paths:
        if match := compiled.fullmatch(path):
            number = match[1] if compiled.groups else None
            if not (number and number.isdecimal()):
                told = f"must capture the layer number in its first group; it does not in leaf {path!r}"
                raise UserError(f"layer_by_layer: pattern {pattern!r} {told}")
            members.setdefault(int(number), []).append(path)
    if not members:
        raise UserError(f"layer_by_layer: pattern {pattern!r} matches no leaf; {nearest(pattern, paths)}")
    return members


def _check_apart(pairs: Iterable[tuple[tuple[str, str], tuple[str, str]]], paths: Sequence[str]) -> None:
    matched = matcher(paths, "rule")
    for (one, pattern), (other, other_pattern) in sorted(pairs):
        shared = sorted(set(matched(pattern)) & set(matched(other_pattern)))
        if shared:
            raise UserError(
                f"by_groups: one event freezes one of the groups {one!r} and {other!r} and thaws the other, and leaf "
                f"{shared[0]!r} is in both; name them in two events, or make the groups disjoint"
            )


def _check_start(start: Any) -> None:
    if isinstance(start, jax.Array) and start.ndim == 0 and jnp.issubdtype(start.dtype, jnp.integer):
        return
    if isinstance(start, bool) or not isinstance(start, int | float):
        raise UserError(f"schedule: start {start!r} is neither a step (int) nor a fraction (float)")
    if isinstance(start, float) and not 0 < start < 1:
        raise UserError(f"schedule: fraction {start} lies outside (0, 1); write a step as an int")
    if start < 0:
        raise UserError(f"schedule: step {start} is negative; the run begins at step 0")


def _check_increasing(starts: Sequence[Any], told: Sequence[Any], where: str = "") -> None:
    for (earlier, before), (later, after) in itertools.pairwise(zip(starts, told, strict=True)):
        if later <= earlier:
            found = f"an entry starts at {after} after one at {before}"
            raise UserError(f"schedule: phases overlap{where}: {found}; starts must increase")
