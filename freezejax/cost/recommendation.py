"""Which parts of a model may be frozen at a tolerated loss: measured by short runs, and predicted with an interval.

Groups of leaves are frozen in random company, one subset per run and all runs of a seed in one sweep. The loss is
taken as a level of each seed, an effect of each group, and an effect of the squared share of parameters that is
frozen: alone nearly every matrix can be spared, together they cannot (paper 64), and the last term is what tells. What
freezing costs differs from one order of the data to another by more than two runs of the same order do; how much, in
proportion to the share that is frozen, is measured, too, and widens the intervals. The groups are then frozen one after
the other, the cheapest per parameter first, as long as the upper end of the predicted cost stays within the tolerance.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy.special import stdtrit

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
class Cost:
    """Percent of the loss with everything trained, with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Fit:
    """What the runs say of the groups: see `fit`."""

    names: tuple[str, ...]
    shares: np.ndarray  # [G] of each group in the parameters of all groups
    effects: np.ndarray  # [G + 1] of each group and of the squared share, in units of the loss
    covariance: np.ndarray  # [G + 1, G + 1] of them over the variance of one run
    variance: float  # of one run
    freedom: int
    level: float  # loss with everything trained, mean over seeds
    seeds: int
    slope_variance: float  # over seeds: of the loss per frozen share of the parameters

    def predict(self, frozen: Sequence[str], *, runs: bool = False) -> Cost:
        """What freezing these groups costs; with `runs`, the interval is that of one run against another of its seed.

        Raises:
          UserError: a group that was not measured.
        """
        for name in frozen:
            if name not in self.names:
                raise UserError(f"there is no group {name!r}; those measured are {', '.join(self.names)}")
        row = np.array([name in frozen for name in self.names], float)
        x, share = _features(row[None], self.shares)[0], row @ self.shares
        mean = x @ self.effects
        of_runs = max(0.0, (2.0 * runs + x @ self.covariance @ x) * self.variance)
        of_seeds = share**2 * self.slope_variance * (runs + 1 / self.seeds)
        # Welch and Satterthwaite: two variances, each known with so much freedom.
        known = of_runs**2 / self.freedom + of_seeds**2 / max(1, self.seeds - 1)
        freedom = (of_runs + of_seeds) ** 2 / known if known else self.freedom
        half = float(stdtrit(freedom, 0.975) * np.sqrt(of_runs + of_seeds))
        return Cost(*(100 * float(value) / self.level for value in (mean, mean - half, mean + half)))


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


def draw_subsets(groups: int, count: int, seed: int = 0) -> np.ndarray:
    """Which groups are frozen in each run: bool [count, groups]; of every size as often, the members by chance.

    >>> draw_subsets(4, 8).sum(axis=1)
    array([1, 2, 3, 4, 1, 2, 3, 4])
    """
    rng, found = np.random.default_rng(seed), np.zeros((count, groups), bool)
    for number, row in enumerate(found):
        row[rng.permutation(groups)[: 1 + number % groups]] = True
    return found


def told_apart(shares: np.ndarray, count: int, seeds: int) -> np.ndarray:
    """Subsets as of `draw_subsets`, from whose runs the effect of every group follows: bool [count, groups].

    Raises:
      UserError: none of a hundred draws does.

    >>> told_apart(np.full(5, 0.2), 7, seeds=3).shape
    (7, 5)
    """
    for draw in range(100):
        found = draw_subsets(len(shares), count, draw)
        runs = [(seed, row) for seed in range(seeds) for row in (np.zeros(len(shares), bool), *found[seed::seeds])]
        if _is_determined(_design(runs, shares), len(shares)):
            return found
    raise UserError(f"subsets={count}, seeds={seeds}: {len(shares)} groups cannot be told apart; measure more subsets")


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


def fit(names: Sequence[str], shares: np.ndarray, losses: Sequence[tuple[int, np.ndarray, float]]) -> Fit:
    """Least squares of the losses on a level of each seed, the groups, and the squared share that is frozen.

    >>> rows = draw_subsets(2, 12)
    >>> losses = [(i % 2, row, 5.0 + row @ [0.1, 0.2]) for i, row in enumerate([*rows, *(rows[:2] & False)])]
    >>> found = fit(["a", "b"], np.array([0.5, 0.5]), losses)
    >>> round(found.predict(["b"]).mean, 3)
    4.0
    """
    runs = [(seed, row) for seed, row, _ in losses]
    x, y = _design(runs, shares), np.array([loss for _, _, loss in losses])
    levels, last = x.shape[1] - len(names) - 1, x.shape[1]
    slopes = _slopes(runs, shares)
    if len(y) > np.linalg.matrix_rank(both := np.hstack([x, slopes])) == last + slopes.shape[1]:
        x = both
    freedom = len(y) - np.linalg.matrix_rank(x)
    if freedom < 1 or not _is_determined(x[:, :last], len(names)):
        raise UserError(f"{len(y)} runs cannot tell {len(names)} groups apart: measure more subsets")
    inverse = np.linalg.pinv(x.T @ x)
    found = inverse @ x.T @ y
    variance = float(np.sum(np.square(y - x @ found)) / freedom)
    level, effects = float(np.mean(found[:levels])), found[levels:last]
    covariance = inverse[levels:last, levels:last]
    of_slopes = _variance_of_slopes(found[last:], inverse[last:, last:] * variance)
    return Fit(tuple(names), np.asarray(shares), effects, covariance, variance, int(freedom), level, levels, of_slopes)


def _slopes(runs: Sequence[tuple[int, np.ndarray]], shares: np.ndarray) -> np.ndarray:
    """How much steeper the loss rises with the frozen share in each seed but the last, the sum over all being zero."""
    seeds = sorted({seed for seed, _ in runs})
    signs = np.array([[float(seed == own) - float(seed == seeds[-1]) for own in seeds[:-1]] for seed, _ in runs])
    return signs.reshape(len(runs), -1) * np.array([[row @ shares] for _, row in runs])


def _variance_of_slopes(slopes: np.ndarray, covariance: np.ndarray) -> float:
    """Their variance over seeds, less what the error of each would make of equal ones; of `_slopes`."""
    if not len(slopes):
        return 0.0
    each = np.vstack([np.eye(len(slopes)), -np.ones(len(slopes))])  # the last seed's is what the others leave
    squares = np.sum(np.square(each @ slopes)) - np.trace(each @ covariance @ each.T)
    return float(max(0.0, squares / len(slopes)))


def within(found: Fit, tolerance_pct: float) -> tuple[str, ...]:
    """Groups frozen one by one, each time the one that costs least per parameter, while the cost stays tolerable.

    A group that would exceed the tolerance is passed over. Tolerable is what has its whole interval below it.
    """
    frozen: list[str] = []
    left = dict(zip(found.names, found.shares, strict=True))
    while left:
        now = found.predict(frozen).mean
        each = {name: (found.predict([*frozen, name]).mean - now) / max(share, 1e-12) for name, share in left.items()}
        name = min(each, key=each.__getitem__)
        del left[name]
        if found.predict([*frozen, name]).high <= tolerance_pct:
            frozen.append(name)
    return tuple(sorted(frozen, key=found.names.index))


def _design(runs: Sequence[tuple[int, np.ndarray]], shares: np.ndarray) -> np.ndarray:
    """A row for each run, of a seed and a subset: levels of the seeds, groups, squared share."""
    seeds = sorted({seed for seed, _ in runs})
    levels = np.array([[seed == own for own in seeds] for seed, _ in runs], float)
    return np.hstack([levels, _features(np.array([row for _, row in runs], float), shares)])


def _is_determined(design: np.ndarray, groups: int) -> bool:
    """Whether every effect follows from the runs; of a single group only the sum with its square can, and need."""
    return bool(np.linalg.matrix_rank(design) >= design.shape[1] - (groups == 1))


def _features(frozen_NxG: np.ndarray, shares_G: np.ndarray) -> np.ndarray:
    return np.hstack([frozen_NxG, np.square(frozen_NxG @ shares_G)[:, None]])


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
