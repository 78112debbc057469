"""The table a user prints first: what trains when, and the bytes it takes."""

import dataclasses
import re

import jax
import numpy as np
import optax

from freezejax import roles
from freezejax.errors import UserError
from freezejax.masks import check_static
from freezejax.optimizer import state_owners
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
        check_static(mask_or_schedule, params)
        phases = [Phase(0, total_steps or 0, mask_or_schedule)]
    tx = optax.adamw(1e-3) if tx is None else tx
    return Description(tuple((phase, _rows(params, phase.mask, tx)) for phase in phases))


def _rows(params: PyTree, mask: PyTree, tx: optax.GradientTransformation) -> tuple[GroupRow, ...]:
    found, trainable = roles.leaves(params), jax.tree.leaves(mask)
    leaves, counts = [leaf.value for leaf in found], [roles.parameter_count(leaf) for leaf in found]
    state_bytes = _state_bytes(params, tx)
    groups: dict[str, list[int]] = {}
    for index, leaf in enumerate(found):
        path = leaf.path.rpartition("/")[0] if leaf.role is Role.SEED else leaf.path
        groups.setdefault(re.sub(r"(^|/)\d+(?=/|$)", r"\1*", path), []).append(index)

    def row(name: str, members: list[int]) -> GroupRow:
        live = [i for i in members if trainable[i]]
        return GroupRow(
            group=name,
            leaves=len(members),
            parameters=sum(counts[i] for i in members),
            trainable_parameters=sum(counts[i] for i in live),
            weight_bytes=sum(_bytes(leaves[i]) for i in members),
            gradient_bytes=sum(_bytes(leaves[i]) for i in live),
            state_bytes=sum(state_bytes[i] for i in live),
        )

    rows = [row(name, members) for name, members in groups.items()]
    return (*rows, row("total", list(range(len(leaves)))))


def _state_bytes(params: PyTree, tx: optax.GradientTransformation) -> list[int]:
    state = jax.eval_shape(tx.init, params)
    indices = jax.tree.unflatten(jax.tree.structure(params), range(len(jax.tree.leaves(params))))
    total = [0] * len(jax.tree.leaves(params))
    for owner, leaf in zip(state_owners(tx, params, state), jax.tree.leaves(state), strict=True):
        if owner is not None:
            total[owner(indices)] += _bytes(leaf)
    return total


def _bytes(leaf: jax.ShapeDtypeStruct | jax.Array | np.ndarray) -> int:
    return int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize


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
