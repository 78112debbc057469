"""Freezing by what is measured while a model trains: at the end of every window of steps a policy says what is frozen.

A decision takes effect one window later, so that the step of the new mask is compiled while the old one runs on. What
is measured follows from the weights at the boundary alone, so a resumed run decides as the uninterrupted one did. Every
decision is a line of `decisions.jsonl` in the run's directory, and together they are a plain `FreezeSchedule`
(`TrainResult.schedule`), under which `train` gives the same bits without measuring anything.
"""

import abc
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from freezejax.analysis import participation_ratio, similarities
from freezejax.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.masks import Rules, trainable_mask
from freezejax.models import Model
from freezejax.partition import combine, partition
from freezejax.paths import PyTree, by_path
from freezejax.training.objectives.base import Batch, Objective

FILE = "decisions.jsonl"
# step, measured (group -> number), kept (of a measure, for the next one), frozen (groups, from one window later on)
Decision = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Policy(abc.ABC):
    """What is measured at the end of every window, and what is then frozen. Subclass it; see `GradientNorm`.

    `groups` are what it freezes and thaws: name -> pattern of leaf paths. All else is as the schedule has it.
    """

    every: int  # steps of a window
    groups: Mapping[str, str]

    def __post_init__(self) -> None:
        """Refuses a window of no steps, and no groups."""
        if self.every < 1 or not self.groups:
            raise UserError(f"policy: every={self.every} and {len(self.groups)} groups; expected 1 or more of both")

    @abc.abstractmethod
    def measure(self, params: PyTree, before: Sequence[Decision]) -> tuple[dict[str, float], Any]:
        """A number for each group, of the weights at a boundary, and what the next boundary needs of it, as JSON."""

    @abc.abstractmethod
    def frozen(self, history: Sequence[Decision], now: frozenset[str]) -> frozenset[str]:
        """Which groups are frozen from the next boundary on, where `now` are; the last of `history` is this one."""

    def rules(self, frozen: frozenset[str], otherwise: Rules) -> Rules:
        """The freeze rules that say so; what no frozen group names is as `otherwise` has it."""
        return [*((self.groups[name], False) for name in self.groups if name in frozen), *otherwise]

    def check(self, params: PyTree) -> None:
        """Refuses, before the first step, a group that holds nothing that could be measured. Takes shapes, too."""
        for name, pattern in self.groups.items():
            found = [leaf for path, leaf in by_path(params).items() if re.fullmatch(pattern, path)]
            if not any(map(self.is_measured, found)):
                raise UserError(
                    f"policy: group {name!r}: {pattern!r} names nothing that {type(self).__name__} measures"
                )

    def is_measured(self, leaf: Any) -> bool:
        """Whether a leaf counts in the measure of its group: the seed of a random map does not."""
        return bool(jnp.issubdtype(leaf.dtype, jnp.floating))

    def describe(self) -> str:
        """What tells it from others, for the record of a run."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.repr}
        return f"{type(self).__name__} {json.dumps(fields, sort_keys=True, default=str)}"


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
    mask = trainable_mask(params, [*((pattern, True) for pattern in patterns), (".*", False)])
    half, rest = partition(params, mask)
    loss = lambda half: objective.loss(combine(half, rest), objective.prepare(batch), jax.random.key(0))[0]  # noqa: E731
    grads = by_path(jax.grad(loss)(half))
    square = lambda leaf: jnp.sum(jnp.square(leaf.astype(jnp.float32)))  # noqa: E731
    of_group = [[square(g) for path, g in grads.items() if re.fullmatch(pattern, path)] for pattern in patterns]
    return [jnp.sqrt(jnp.sum(jnp.stack(squares))) for squares in of_group]


@functools.partial(jax.jit, static_argnums=(0, 3))
def _similarities(model: Model, params: PyTree, tokens_BxT: jax.Array, blocks: tuple[int, ...]) -> list[jax.Array]:
    taps = model.apply(params, tokens_BxT, taps=blocks)[1]
    return [similarities(jax.tree.leaves(taps[block])[-1]) for block in blocks]


class Decisions:
    """The decisions of one run so far, on disk."""

    def __init__(self, policy: Policy, directory: Path, otherwise: Rules, extend: Callable[[int, Rules], None]) -> None:
        """`extend(step, rules)` is told what trains from a step on; `otherwise` is what the schedule begins with."""
        self.policy, self.otherwise, self.extend, self.directory = policy, otherwise, extend, directory
        self.history: list[Decision] = []
        self.now: frozenset[str] = frozenset()

    def resume(self, step: int) -> None:
        """Takes up the decisions before `step` again; later ones, of a run that was killed, are void."""
        path = self.directory / FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() and step > 0 else []
        for decision in map(json.loads, lines):
            if decision["step"] <= step:
                self._follow(decision)

    def is_due(self, step: int, last: int) -> bool:
        """Whether a window ends after `step` updates, and what is decided then could take effect before the last."""
        return step % self.policy.every == 0 and step + self.policy.every < last

    def take(self, step: int, params: PyTree, *, write: bool) -> None:
        """Measures and decides."""
        measured, kept = self.policy.measure(params, self.history)
        decision: Decision = {"step": step, "measured": measured, "kept": kept}
        frozen = self.policy.frozen([*self.history, decision], self.now)
        self._follow({**decision, "frozen": sorted(frozen)})
        if write:
            lines = [json.dumps(decision) + "\n" for decision in self.history]
            write_atomically(self.directory / FILE, "".join(lines))

    def _follow(self, decision: Decision) -> None:
        self.history.append(decision)
        frozen = frozenset(decision["frozen"])
        if frozen != self.now:
            self.now = frozen
            self.extend(decision["step"] + self.policy.every, self.policy.rules(frozen, self.otherwise))
