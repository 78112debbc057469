"""The table a user prints first: what trains when, and the bytes it takes."""

import dataclasses
import math
import re
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from freezejax import roles
from freezejax.errors import UserError
from freezejax.guard import guarded
from freezejax.masks import check_static
from freezejax.owners import state_owners
from freezejax.paths import PyTree
from freezejax.roles import Role
from freezejax.schedules import FreezeSchedule, Phase


@dataclasses.dataclass(frozen=True)
class GroupRow:
    """One module group in one phase; `gradient_bytes` and `state_bytes` are 0 where frozen.

    >>> GroupRow("mlp/up", 1, 64, 0, 256, 0, 0).trainable_share
    0.0
    """

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

    >>> Description(()).phases
    ()
    """

    phases: tuple[tuple[Phase, tuple[GroupRow, ...]], ...]

    def __str__(self) -> str:
        """The table, one block per phase."""
        return "\n\n".join(_block(phase, rows, len(self.phases) > 1) for phase, rows in self.phases)


def describe(
    params: PyTree,
    mask_or_schedule: PyTree | FreezeSchedule,
    *,
    total_steps: int | None = None,
    tx: optax.GradientTransformation | None = None,
) -> Description:
    """What trains when, and the bytes of weights, gradients and optimizer state it takes.

    Leaves that differ only in their numbers (`blocks/0/...`, `blocks/1/...`) share a row. A random map counts as
    the parameters it stands for and as the 8 bytes of its seed.

    Args:
      params: arrays or `jax.ShapeDtypeStruct`s.
      mask_or_schedule: a tree of bools, or a schedule.
      total_steps: length of the run in steps; needed for a schedule.
      tx: the optimizer whose state is counted; AdamW (two moments) if not given.

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
    else:
        check_static(mask_or_schedule, params, whole=True)
        phases = [Phase(0, total_steps or 0, mask_or_schedule)]
    leaves = _leaves(params, [phase.mask for phase in phases], optax.adamw(1e-3) if tx is None else tx)
    return Description(tuple((phase, _rows(leaves, jax.tree.leaves(phase.mask))) for phase in phases))


class _Leaf(NamedTuple):
    group: str
    parameters: int
    weight_bytes: int
    state_bytes: int  # while it trains


def _leaves(params: PyTree, masks: list[PyTree], tx: optax.GradientTransformation) -> list[_Leaf]:
    found = []
    for leaf, state in zip(roles.leaves(params), _state_bytes(params, masks, tx), strict=True):
        path = leaf.path.rpartition("/")[0] if leaf.role is Role.SEED else leaf.path
        group = re.sub(r"(^|/)\d+(?=/|$)", r"\1*", path)
        found.append(_Leaf(group, roles.parameter_count(leaf), _bytes(leaf.value), state))
    return found


def _rows(leaves: list[_Leaf], trainable: list[bool]) -> tuple[GroupRow, ...]:
    members: dict[str, list[tuple[_Leaf, bool]]] = {}
    for leaf, trains in zip(leaves, trainable, strict=True):
        members.setdefault(leaf.group, []).append((leaf, trains))
    members["total"] = list(zip(leaves, trainable, strict=True))
    return tuple(_row(group, of_group) for group, of_group in members.items())


def _row(group: str, members: list[tuple[_Leaf, bool]]) -> GroupRow:
    live = [leaf for leaf, trains in members if trains]
    return GroupRow(
        group=group,
        leaves=len(members),
        parameters=sum(leaf.parameters for leaf, _ in members),
        trainable_parameters=sum(leaf.parameters for leaf in live),
        weight_bytes=sum(leaf.weight_bytes for leaf, _ in members),
        gradient_bytes=sum(leaf.weight_bytes for leaf in live),
        state_bytes=sum(leaf.state_bytes for leaf in live),
    )


def _state_bytes(params: PyTree, masks: list[PyTree], tx: optax.GradientTransformation) -> list[int]:
    leaves, structure = jax.tree.flatten(params)
    live = [at for at, trains in enumerate(zip(*map(jax.tree.leaves, masks), strict=True)) if any(trains)]
    shown: list[Any] = [optax.MaskedNode()] * len(leaves)
    for at in live:
        shown[at] = leaves[at]
    tree, tx = jax.tree.unflatten(structure, shown), guarded(tx)
    state = jax.eval_shape(tx.init, tree)
    total = [0] * len(leaves)
    for owner, leaf in zip(state_owners(tx, tree, state), jax.tree.leaves(state), strict=True):
        if owner is not None:
            total[live[owner]] += _bytes(leaf)
    return total


def _bytes(leaf: jax.ShapeDtypeStruct | jax.Array | np.ndarray) -> int:
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def _block(phase: Phase, rows: tuple[GroupRow, ...], titled: bool) -> str:
    header = ("group", "leaves", "parameters", "trainable", "weights", "gradients", "state")
    cells = [header] + [
        (
            row.group,
            f"{row.leaves}",
            f"{row.parameters:,}",
            f"{row.trainable_share:.0%}",
            _human(row.weight_bytes),
            _human(row.gradient_bytes),
            _human(row.state_bytes),
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    lines = [
        "  ".join([line[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)])
        for line in cells
    ]
    return "\n".join([f"steps {phase.start} to {phase.stop}"] * titled + lines)


def _human(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
