"""What groups cost, frozen alone and together, from the losses of runs in which subsets of them were: with intervals.

The loss is taken as a level of each seed, an effect of each group, and an effect of the squared share of parameters
that is frozen: alone nearly every matrix can be spared, together they cannot (paper 64), and the last term is what
tells. What freezing costs differs from one order of the data to another by more than two runs of the same order do; how
much, in proportion to the share that is frozen, is measured, too, and widens the intervals.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from freezejax.errors import UserError


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


def fit(names: Sequence[str], shares: np.ndarray, losses: Sequence[tuple[int, np.ndarray, float]]) -> Fit:
    """Least squares of the losses on a level of each seed, the groups, and the squared share that is frozen.

    And, where there are runs enough, on how much steeper they rise with the frozen share in each seed.

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
