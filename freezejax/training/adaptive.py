"""Freezing by what is measured while a model trains: at the end of every window of steps a policy says what is frozen.

A decision takes effect one window later, so that the step of the new mask is compiled while the old one runs on. What
is measured follows from the weights at the boundary alone, so a resumed run decides as the uninterrupted one did. Every
decision is a line of `decisions.jsonl` in the run's directory, and together they are a plain `FreezeSchedule`
(`TrainResult.schedule`), under which `train` gives the same bits without measuring anything.
"""

import abc
import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from freezejax.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.masks import Rules
from freezejax.paths import PyTree, by_path

FILE = "decisions.jsonl"
# step, measured (group -> number), kept (of a measure, for the next one), frozen (groups, from one window later on)
Decision = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Policy(abc.ABC):
    """What is measured at the end of every window, and what is then frozen. Subclass it, as policies.py does.

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
