"""Which parts of a model may be frozen at a tolerated loss: measured by short runs, and predicted with an interval.

Groups of leaves are frozen in random company, one subset per run and all runs of a seed in one sweep; what their losses
say of the groups: `effects`. The groups are then frozen one after the other, the cheapest per parameter first, as long
as the upper end of the predicted cost stays within the tolerance.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from freezejax.cost.effects import Cost, Fit, fit, told_apart, within
from freezejax.cost.prediction import PhaseCost, predict
from freezejax.errors import UserError
from freezejax.masks import Rules
from freezejax.models import Model
from freezejax.paths import PyTree, by_path
from freezejax.roles import Role, leaves
from freezejax.schedules import FreezeSchedule
from freezejax.training.batches import BatchSource
from freezejax.training.config import TrainConfig
from freezejax.training.interrupts import StopSignal
from freezejax.training.objectives.base import Objective
from freezejax.training.sweep import sweep

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """What to freeze from the first step on, and what that is predicted to cost and to save."""

    schedule: FreezeSchedule
    frozen: tuple[str, ...]  # names of groups
    cost: Cost  # of the mean over runs
    one_run: Cost  # the same, with the interval that one pair of runs should fall into
    fit: Fit
    before: PhaseCost  # a step with everything trained
    after: PhaseCost  # a step under the schedule

    @property
    def saved(self) -> dict[str, float]:
        """Share of a step's FLOPs, and of the bytes of gradients and optimizer state, that are saved, in [0, 1]."""
        memory = [each.gradient_bytes + each.optimizer_bytes for each in (self.before, self.after)]
        return {"flops": 1 - self.after.flops / self.before.flops, "memory": 1 - memory[1] / memory[0]}


def recommend(
    model: Model,
    params: PyTree,
    objective: Objective,
    batches: Callable[[TrainConfig], BatchSource],
    config: TrainConfig,
    *,
    tolerance_pct: float,
    groups: Mapping[str, str] | None = None,
    subsets: int = 0,
    seeds: int = 6,
    figure: str = "val_ce",
    say: Say = lambda text: None,
    stop: StopSignal | None = None,
) -> Recommendation:
    """What of a model may be frozen at no more than a tolerated loss, from short runs of it.

    Groups are added one by one, the cheapest per parameter first: some other choice may freeze more.

    Args:
      model: what is to be trained.
      params: its weights, from which every run starts.
      objective: what is minimized; its `evaluate` gives `figure`.
      batches: the source of batches of a config, for instance `lambda config: TokenBatches(tokens, config)`.
      config: of the runs; as many steps as the training that is planned, or as one can afford.
      tolerance_pct: the largest rise of the figure, in percent of that with everything trained.
      groups: name -> pattern of leaf paths, of what is frozen together; None = the matrices of each block, apart.
      subsets: how many are measured; 0 = three times as many as there are groups, and one more for each seed.
      seeds: of data order and dropout; the subsets are dealt out among them. From a single one, or from too few
        subsets, the intervals are those of runs in the same order of data.
      figure: of the evaluation; lower is better.
      say: told what happens.
      stop: as of `sweep`.

    Returns:
      The schedule, with what it is predicted to cost and to save.

    Raises:
      UserError: too few runs for so many groups, a group that matches nothing, an evaluation without the figure.
    """
    patterns = dict(each_block_matrix(model.abstract_params()) if groups is None else groups)
    if not tolerance_pct > 0 or seeds < 1:
        raise UserError(f"tolerance={tolerance_pct} %, seeds={seeds}: expected a number above 0, and 1 or more")
    wanted = subsets or 3 * len(patterns) + seeds
    if wanted < len(patterns) + 2:
        raise UserError(f"subsets={wanted}: {len(patterns)} groups need at least {len(patterns) + 2} to be told apart")
    if figure not in (figures := objective.evaluate(params)):
        raise UserError(f"figure={figure!r}: the objective's evaluation gives {', '.join(figures) or 'nothing'}")
    shares = shares_of(model.abstract_params(), patterns)
    chosen = told_apart(shares, wanted, seeds)
    losses = list(measure(model, params, objective, batches, config, patterns, chosen, seeds, figure, say, stop))
    found = fit(tuple(patterns), shares, losses)
    frozen = within(found, tolerance_pct)
    schedule = FreezeSchedule([(0, rules_of(patterns, frozen))])
    before = predict(model, config, FreezeSchedule([(0, [(".*", True)])])).phases[0]
    after = predict(model, config, schedule).phases[0]
    costs = found.predict(frozen), found.predict(frozen, runs=True)
    return Recommendation(schedule, frozen, *costs, found, before, after)


def each_block_matrix(params: PyTree) -> dict[str, str]:
    """Every matrix inside the blocks as a group, by its path: of parameters or their shapes."""
    found = [leaf.kernel for leaf in leaves(params) if leaf.role is Role.KERNEL and leaf.path.startswith("blocks/")]
    return {kernel: f"{re.escape(kernel)}(/.*)?" for kernel in dict.fromkeys(found)}


def rules_of(patterns: Mapping[str, str], frozen: Sequence[str]) -> Rules:
    """The freeze rules of some groups."""
    return [*((patterns[name], False) for name in frozen), (".*", True)]


def shares_of(params: PyTree, patterns: Mapping[str, str]) -> np.ndarray:
    """Of each group, its share in the parameters of all groups: [G]."""
    sizes = {path: leaf.size for path, leaf in by_path(params).items()}
    found = [sum(n for path, n in sizes.items() if re.fullmatch(pattern, path)) for pattern in patterns.values()]
    return np.array(found, float) / max(1, sum(found))


def measure(
    model: Model,
    params: PyTree,
    objective: Objective,
    batches: Callable[[TrainConfig], BatchSource],
    config: TrainConfig,
    patterns: Mapping[str, str],
    subsets: np.ndarray,
    seeds: int,
    figure: str,
    say: Say = lambda text: None,
    stop: StopSignal | None = None,
) -> Iterator[tuple[int, np.ndarray, float]]:
    """Runs every subset with one of the seeds, and nothing frozen with each: (seed, subset, loss)."""
    names = list(patterns)
    for seed in range(seeds):
        own = np.vstack([np.zeros((1, len(names)), bool), subsets[seed::seeds]])
        chosen = [[name for name, frozen in zip(names, row, strict=True) if frozen] for row in own]
        schedules = [FreezeSchedule([(0, rules_of(patterns, frozen))]) for frozen in chosen]
        seeded = dataclasses.replace(config, seed=config.seed + seed)
        say(f"seed {seed}: {len(schedules)} runs of {config.steps} steps")
        for each in sweep(model, objective, batches(seeded), seeded, schedules, params=params, stop=stop):
            yield seed, own[each.index], each.records[-1][figure]


def describe(found: Recommendation) -> dict[str, Any]:
    """All of it as plain values, for a file."""
    saved = found.saved
    effects = {name: dataclasses.asdict(found.fit.predict([name])) for name in found.fit.names}
    return {
        "frozen": [*found.frozen],
        "schedule": [
            [start, [[pattern, trains] for pattern, trains in rules]] for start, rules in found.schedule.entries
        ],
        "cost_pct": dataclasses.asdict(found.cost),
        "cost_of_one_run_pct": dataclasses.asdict(found.one_run),
        "saved": saved,
        "alone_pct": effects,
        "loss": found.fit.level,
        "seed_sd": float(np.sqrt(found.fit.variance)),
        "slope_sd": float(np.sqrt(found.fit.slope_variance)),
        "devices": [str(device.device_kind) for device in jax.devices()[:1]],
    }
