"""The table a user prints first: what trains when, and the bytes it takes."""

import dataclasses
import math
import re
from collections.abc import Sequence

import jax
import numpy as np
import optax

from freezejax import roles
from freezejax.errors import UserError
from freezejax.guard import guarded, state_owners
from freezejax.masks import check_static
from freezejax.paths import PyTree
from freezejax.roles import Role
from freezejax.schedules import FreezeSchedule, Phase
from freezejax.selection import Match, matches


@dataclasses.dataclass(frozen=True)
class GroupRow:
    """One module group in one phase; `gradient_bytes` and `state_bytes` are 0 where frozen."""

    group: str
    leaves: int
    parameters: int
    trainable_parameters: int
    weight_bytes: int
    gradient_bytes: int
    state_bytes: int

    @property
    def trainable_share(self) -> float:
        """Share of the group's parameters that train, in [0, 1]."""
        return self.trainable_parameters / max(self.parameters, 1)


@dataclasses.dataclass(frozen=True)
class Description:
    """Rows per phase; `str()` is the table.

    `rules` are, of every phase of a schedule, what each of its rules catches, such as 2 of 30 layers.
    """

    phases: tuple[tuple[Phase, tuple[GroupRow, ...]], ...]
    rules: tuple[tuple[Match, ...], ...] = ()

    def __str__(self) -> str:
        """The table, one block per phase, and under it what each rule catches, unless one alone decides everything."""
        rules = self.rules or ((),) * len(self.phases)
        told = zip(self.phases, rules, strict=True)
        return "\n\n".join(_block(phase, rows, len(self.phases) > 1, found) for (phase, rows), found in told)


def describe(
    params: PyTree,
    mask_or_schedule: PyTree | FreezeSchedule,
    *,
    total_steps: int | None = None,
    tx: optax.GradientTransformation | None = None,
) -> Description:
    """What trains when, and the bytes of weights, gradients and optimizer state it takes.

    Leaves that differ only in numbers share a row: of `blocks/0` and `blocks/1`, or `block_0` and `block_1`, but not of
    layers (`Dense_0/kernel`). A random map counts as the parameters it stands for and as the 8 bytes of its seed.
    `params` may be shapes, a schedule needs `total_steps`, and the state is that of `tx`, or of AdamW (two moments).

    Raises:
      UserError: a schedule without `total_steps`, or a mask or schedule that does not fit `params`.

    >>> params = {"up": np.zeros((2, 3), np.float32), "down": np.zeros((3, 2), np.float32)}
    >>> print(describe(params, {"up": False, "down": True}))
    group  leaves  parameters  trainable  weights  gradients  state
    down        1           6       100%     24 B       24 B   48 B
    up          1           6         0%     24 B        0 B    0 B
    total       2          12        50%     48 B       24 B   48 B
    """
    if isinstance(mask_or_schedule, FreezeSchedule):
        if total_steps is None:
            raise UserError("describe: a schedule needs total_steps, the length of the run")
        phases = mask_or_schedule.phases(params, total_steps)
        found = [tuple(matches(params, rules)) for _, rules in mask_or_schedule.entries]
    else:
        check_static(mask_or_schedule, params, whole=True)
        phases, found = [Phase(0, total_steps or 0, mask_or_schedule)], []
    states = _state_bytes(params, [phase.mask for phase in phases], optax.adamw(1e-3) if tx is None else tx)
    leaves = [_figures(leaf, state) for leaf, state in zip(roles.leaves(params), states, strict=True)]
    rows = tuple((phase, _rows(leaves, jax.tree.leaves(phase.mask))) for phase in phases)
    return Description(rows, tuple(found))


def _figures(leaf: roles.Leaf, state_bytes: int) -> tuple[str, int, int, int]:
    """Group, parameters, bytes, and bytes of optimizer state while it trains."""
    path = leaf.path.rpartition("/")[0] if leaf.role is Role.SEED else leaf.path
    group = re.sub(r"(?<![^/])\d+(?![^/])|(?<=[^/]_)\d+(?=/[^/]+/)", "*", path)
    return group, roles.parameter_count(leaf), _bytes(leaf.value), state_bytes


def _rows(leaves: Sequence[tuple[str, int, int, int]], trainable: Sequence[bool]) -> tuple[GroupRow, ...]:
    members: dict[str, list[tuple[int, ...]]] = {}
    for (group, parameters, weights, state), trains in zip(leaves, trainable, strict=True):
        figures = (1, parameters, parameters * trains, weights, weights * trains, state * trains)
        members.setdefault(group, []).append(figures)
    members["total"] = [figures for group in members.values() for figures in group]
    sums = {group: map(sum, zip((0,) * 6, *figures, strict=True)) for group, figures in members.items()}
    return tuple(GroupRow(group, *figures) for group, figures in sums.items())


def _state_bytes(params: PyTree, masks: list[PyTree], tx: optax.GradientTransformation) -> list[int]:
    leaves, structure = jax.tree.flatten(params)
    ever = [any(trains) for trains in zip(*map(jax.tree.leaves, masks), strict=True)]
    live = [at for at, trains in enumerate(ever) if trains]
    shown = [leaf if trains else optax.MaskedNode() for leaf, trains in zip(leaves, ever, strict=True)]
    tree, tx = jax.tree.unflatten(structure, shown), guarded(tx)
    state = jax.eval_shape(tx.init, tree)
    total = [0] * len(leaves)
    for owner, leaf in zip(state_owners(tx, tree, state), jax.tree.leaves(state), strict=True):
        if owner is not None:
            total[live[owner]] += _bytes(leaf)
    return total


def _bytes(leaf: jax.ShapeDtypeStruct | jax.Array | np.ndarray) -> int:
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def _block(phase: Phase, rows: tuple[GroupRow, ...], titled: bool, rules: Sequence[Match]) -> str:
    cells: list[tuple[str, ...]] = [("group", "leaves", "parameters", "trainable", "weights", "gradients", "state")]
    for row in rows:
        sizes = map(_human, (row.weight_bytes, row.gradient_bytes, row.state_bytes))
        cells.append((row.group, f"{row.leaves}", f"{row.parameters:,}", f"{row.trainable_share:.0%}", *sizes))
    first, *others = (max(map(len, column)) for column in zip(*cells, strict=True))
    lines = [
        "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(line, others, strict=True))])
        for name, *line in cells
    ]
    told = map(str, rules if len(rules) > 1 else ())
    return "\n".join([*[f"steps {phase.start} to {phase.stop}"] * titled, *lines, *told])


def _human(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
