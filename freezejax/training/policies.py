"""Policies of adaptive freezing: by gradients, Fisher information, plasticity, participation ratio."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from freezejax.analysis import participation_ratio, similarities
from freezejax.analysis.diagnostics import gradient_sums
from freezejax.errors import UserError
from freezejax.masks import trainable_mask
from freezejax.models import Model
from freezejax.partition import combine, partition
from freezejax.paths import PyTree, by_path
from freezejax.training.adaptive import Decision, Policy
from freezejax.training.objectives.base import Batch, Objective


def each_matrix(kernels: Sequence[str]) -> dict[str, str]:
    """Every matrix as a group of its own, by its path.

    >>> each_matrix(["blocks/0/mlp/up/kernel"])
    {'blocks/0/mlp/up/kernel': 'blocks/0/mlp/up/kernel'}
    """
    return {kernel: re.escape(kernel) for kernel in kernels}


@dataclasses.dataclass(frozen=True)
class GradientNorm(Policy):
    """Freezes a group once its gradient has become small beside its largest so far, and thaws it when it is not.

    The norm is that of the loss on one batch that is kept apart, `probe`. Source: GradES, arXiv:2509.01842, whose
    threshold is absolute and whose norm that of the training batch.
    """

    objective: Objective = dataclasses.field(repr=False)
    probe: Batch = dataclasses.field(repr=False)
    threshold: float = 0.5  # of the largest norm at a boundary so far
    thaw: float = float("inf")  # likewise; above it a frozen group trains again

    def measure(self, params: PyTree, before: Sequence[Decision]) -> tuple[dict[str, float], Any]:
        """Norm of the gradient of every group."""
        found = _gradient_norms(self.objective, params, self.probe, tuple(self.groups.values()))
        return dict(zip(self.groups, map(float, found), strict=True)), None

    def frozen(self, history: Sequence[Decision], now: frozenset[str]) -> frozenset[str]:
        """Those below the threshold, and those frozen before that are not above `thaw`."""
        return _hysteresis(history, now, self.threshold, self.thaw)


@dataclasses.dataclass(frozen=True)
class Fisher(GradientNorm):
    """As `GradientNorm`, by the Fisher information of a group in place of the norm of its gradient.

    It is the mean over the examples of the probe of the squared norm of each one's gradient
    (`analysis.sensitivities`): examples that pull in opposite directions do not cancel.
    """

    def measure(self, params: PyTree, before: Sequence[Decision]) -> tuple[dict[str, float], Any]:
        """Fisher information of every group."""
        found = _fisher(self.objective, params, self.probe, tuple(self.groups.values()))
        return dict(zip(self.groups, map(float, found), strict=True)), None


@dataclasses.dataclass(frozen=True)
class Plasticity(Policy):
    """Freezes a block once what comes out of it has ceased to change, from the bottom up.

    The change is that since the boundary before (`analysis.plasticity`), on one batch that is kept apart. The groups
    are named by the numbers of their blocks. Source: Egeria, arXiv:2201.06227, with the model of the boundary before
    as the reference.
    """

    model: Model = dataclasses.field(repr=False)
    tokens_BxT: Any = dataclasses.field(repr=False)
    threshold: float = 0.5  # of a block's largest plasticity so far
    thaw: float = float("inf")

    def __post_init__(self) -> None:
        """Refuses a batch of one: there is nothing that it could be like."""
        super().__post_init__()
        if len(self.tokens_BxT) < 2:
            raise UserError("policy: plasticity compares the examples of a batch; give 2 or more")

    def measure(self, params: PyTree, before: Sequence[Decision]) -> tuple[dict[str, float], Any]:
        """Plasticity of every block, of none at the first boundary; kept are the similarities it is computed from."""
        blocks = tuple(map(int, self.groups))
        now = [np.asarray(found) for found in _similarities(self.model, params, self.tokens_BxT, blocks)]
        kept = dict(zip(self.groups, (found.tolist() for found in now), strict=True))
        if not before:
            return {}, kept
        then = [np.array(before[-1]["kept"][name], np.float32) for name in self.groups]
        changes = [float(np.mean(np.square(a - b))) for a, b in zip(now, then, strict=True)]
        return dict(zip(self.groups, changes, strict=True)), kept

    def frozen(self, history: Sequence[Decision], now: frozenset[str]) -> frozenset[str]:
        """The lowest blocks, up to the first that still changes."""
        below = _hysteresis(history[1:], now, self.threshold, self.thaw)
        found: list[str] = []
        for name in sorted(self.groups, key=int):
            if name not in below:
                break
            found.append(name)
        return frozenset(found)


@dataclasses.dataclass(frozen=True)
class LowParticipation(Policy):
    """Freezes one more share of the groups at every boundary, those whose weights fill the fewest dimensions first.

    The order is that of the participation ratio at the first boundary. Source: paper 62's proposal ("2-3x faster").
    """

    share: float = 0.1  # of the groups, per window
    most: float = 0.9  # of the groups, in the end

    def is_measured(self, leaf: Any) -> bool:
        """Whether a leaf is a matrix."""
        return super().is_measured(leaf) and leaf.ndim == 2

    def measure(self, params: PyTree, before: Sequence[Decision]) -> tuple[dict[str, float], Any]:
        """Participation ratio of every group, a matrix: that of the first boundary for ever."""
        if before:
            return dict(before[0]["measured"]), None
        found = {}
        for name, pattern in self.groups.items():
            leaves = by_path(params).items()
            matrices = [leaf for path, leaf in leaves if re.fullmatch(pattern, path) and self.is_measured(leaf)]
            found[name] = float(np.mean([float(participation_ratio(leaf.T)) for leaf in matrices]))
        return found, None

    def frozen(self, history: Sequence[Decision], now: frozenset[str]) -> frozenset[str]:
        """As many as it is time for, lowest first."""
        measured = history[0]["measured"]
        count = int(min(self.most, self.share * len(history)) * len(measured) + 1e-9)
        return frozenset(sorted(measured, key=measured.__getitem__)[:count])


def _hysteresis(history: Sequence[Decision], now: frozenset[str], low: float, high: float) -> frozenset[str]:
    """Groups below `low` times their largest so far, and those of `now` that are not above `high` times it."""
    if not history:
        return now
    last = history[-1]["measured"]
    largest = {name: max(decision["measured"][name] for decision in history) for name in last}
    return frozenset(name for name in last if last[name] < (high if name in now else low) * largest[name])


@functools.partial(jax.jit, static_argnums=(0, 3))
def _gradient_norms(objective: Objective, params: PyTree, batch: Batch, patterns: tuple[str, ...]) -> list[jax.Array]:
    half, rest = _parted(params, patterns)
    grads = jax.grad(lambda half: _loss(objective, combine(half, rest), batch))(half)
    squares = jax.tree.map(lambda grad: jnp.sum(jnp.square(grad.astype(jnp.float32))), grads)
    return [jnp.sqrt(total) for total in _by_group(squares, patterns)]


@functools.partial(jax.jit, static_argnums=(0, 3))
def _fisher(objective: Objective, params: PyTree, batch: Batch, patterns: tuple[str, ...]) -> list[jax.Array]:
    half, rest = _parted(params, patterns)
    squares = gradient_sums(functools.partial(_loss, objective), half, rest, batch)[1]
    rows = jax.tree.leaves(batch)[0].shape[0]
    return [total / rows for total in _by_group(squares, patterns)]


def _loss(objective: Objective, params: PyTree, batch: Batch) -> jax.Array:
    return objective.loss(params, objective.prepare(batch), jax.random.key(0))[0]


def _parted(params: PyTree, patterns: tuple[str, ...]) -> tuple[PyTree, PyTree]:
    """What the groups name, and the rest."""
    return partition(params, trainable_mask(params, [*((pattern, True) for pattern in patterns), (".*", False)]))


def _by_group(squares: PyTree, patterns: tuple[str, ...]) -> list[jax.Array]:
    found = by_path(squares).items()
    return [jnp.sum(jnp.stack([each for path, each in found if re.fullmatch(p, path)])) for p in patterns]


@functools.partial(jax.jit, static_argnums=(0, 3))
def _similarities(model: Model, params: PyTree, tokens_BxT: jax.Array, blocks: tuple[int, ...]) -> list[jax.Array]:
    taps = model.apply(params, tokens_BxT, taps=blocks)[1]
    return [similarities(jax.tree.leaves(taps[block])[-1]) for block in blocks]
