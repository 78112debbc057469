"""Intervals and spreads over two axes of seeds, paired effects, and the rule that turns an effect into a verdict."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

Figures = Mapping[tuple[int, int], float]  # (training seed, base seed) -> figure of that run
NO_EFFECT_PCT = 1.0  # a claim of "no effect" means within this many percent
SAME_FIGURE, SAME_NEAR_ZERO = 0.10, 0.05  # a measured figure is the paper's: a share of it, or this much
SAME_BYTES_PCT = 2.0  # files of the same size differ by no more than this


class Interval(NamedTuple):
    """Mean and half-width of the 95 % interval, None of a single value: its ends then lie at infinity."""

    mean: float
    ci95: float | None

    @property
    def low(self) -> float:
        """Lower end."""
        return -np.inf if self.ci95 is None else self.mean - self.ci95

    @property
    def high(self) -> float:
        """Upper end."""
        return np.inf if self.ci95 is None else self.mean + self.ci95


def interval(values: Sequence[float]) -> Interval:
    """Mean with Student's 95 % interval over independent runs.

    >>> interval([1.0, 2.0, 3.0]).mean, round(interval([1.0, 2.0, 3.0]).ci95, 2)
    (2.0, 2.48)
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return Interval(float(array.mean()), None)
    error = array.std(ddof=1) / np.sqrt(len(array))
    return Interval(float(array.mean()), float(stdtrit(len(array) - 1, 0.975) * error))


def paired_effect_pct(ours: Sequence[float], reference: Sequence[float]) -> Interval:
    """Relative difference in percent, seed by seed (same seed: same batches), with its interval."""
    return interval([100.0 * (our - other) / other for our, other in zip(ours, reference, strict=True)])


def over_base_seeds(figures: Figures) -> dict[int, float]:
    """Training seed -> mean over its base seeds.

    >>> over_base_seeds({(0, 0): 1.0, (0, 1): 3.0, (1, 0): 5.0})
    {0: 2.0, 1: 5.0}
    """
    return {seed: float(np.mean(values)) for seed, values in _by_seed(figures, 0).items()}


def paired_over_seeds(ours: Figures, reference: Figures, *, same_maps: bool) -> Interval | None:
    """Relative difference in percent over the training seeds both sides have, after the mean over base seeds.

    With `same_maps` both sides draw maps from the base seed: only runs with the same two seeds are compared. None where
    there is no pair.

    >>> paired_over_seeds({(0, 0): 3.0, (0, 1): 5.0}, {(0, 0): 2.0}, same_maps=True)
    Interval(mean=50.0, ci95=None)
    """
    both = ours.keys() & reference.keys()
    mine, theirs = (
        over_base_seeds({run: value for run, value in side.items() if run in both or not same_maps})
        for side in (ours, reference)
    )
    seeds = sorted(mine.keys() & theirs.keys())
    return paired_effect_pct([mine[s] for s in seeds], [theirs[s] for s in seeds]) if seeds else None


def interaction_pct(reference: Figures, together: Figures, *alone: Figures) -> Interval | None:
    """How much more the parts cost together than the sum of what each costs alone, percent of the reference's figure.

    Seed by seed, over the training seeds that all have.

    >>> one = {(0, 0): 11.0}
    >>> interaction_pct({(0, 0): 10.0}, {(0, 0): 15.0}, one, one)
    Interval(mean=30.0, ci95=None)
    """
    sides = [over_base_seeds(figures) for figures in (reference, together, *alone)]
    seeds = sorted(set.intersection(*(set(side) for side in sides)))
    each = ([side[seed] for side in sides] for seed in seeds)
    found = [100.0 * ((whole - base) - sum(part - base for part in parts)) / base for base, whole, *parts in each]
    return interval(found) if found else None


class RankCorrelation(NamedTuple):
    """Spearman's, and the ends of its interval."""

    value: float
    low: float
    high: float


def rank_correlation(x: Sequence[float], y: Sequence[float], *, tests: int = 1) -> RankCorrelation | None:
    """Spearman's rank correlation with its 95 % interval; with several `tests` one that holds for all together.

    By Fisher's transformation with the standard error of Bonett and Wright (2000), at a level of 5 % / `tests`. None
    where there are fewer than five pairs, or one side is constant.

    >>> rank = rank_correlation(range(10), [0, 2, 1, 3, 4, 6, 5, 7, 9, 8])
    >>> round(rank.value, 3), round(rank.low, 2), round(rank.high, 2)
    (0.964, 0.8, 0.99)
    """
    from scipy.stats import spearmanr  # takes a while to import

    if len(x) < 5 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    value = float(spearmanr(x, y).statistic)
    error = np.sqrt((1 + value**2 / 2) / (len(x) - 3)) * float(ndtri(1 - 0.025 / tests))
    middle = np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12))
    return RankCorrelation(value, float(np.tanh(middle - error)), float(np.tanh(middle + error)))


def seed_sd(figures: Figures, axis: str) -> float | None:
    """Spread over one axis of seeds, "training" or "base", with the other seed held; None where it has one seed.

    The root of the sum of squared deviations from the mean of each held seed, over the sum of (runs - 1).

    >>> figures = {(0, 0): 1.0, (1, 0): 3.0, (0, 1): 7.0, (1, 1): 9.0}
    >>> round(seed_sd(figures, "training"), 4), round(seed_sd(figures, "base"), 4)
    (1.4142, 4.2426)
    """
    groups = [np.asarray(values) for values in _by_seed(figures, {"training": 1, "base": 0}[axis]).values()]
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(np.square(group - group.mean()).sum()) for group in groups)
    return float(np.sqrt(squares / freedom)) if freedom else None


def _by_seed(figures: Figures, axis: int) -> dict[int, list[float]]:
    groups: dict[int, list[float]] = {}
    for run, value in sorted(figures.items()):
        groups.setdefault(run[axis], []).append(value)
    return groups


def verdict(effect: Interval, claimed_pct: float) -> str:
    """Whether an effect bears out a claim, by its 95 % interval alone. It judges the sign, not the size.

    Reproduced: the interval lies wholly on the claim's side of zero. Not reproduced: wholly on the other
    side. A claim of 0 is a claim of no effect: wholly within, or wholly outside, +-1 %. Else
    inconclusive, as is every effect without an interval, for that reaches to infinity on both sides.

    >>> verdict(Interval(-3.0, 1.0), -2.2), verdict(Interval(3.0, 1.0), -2.2), verdict(Interval(3.0, None), -2.2)
    ('reproduced', 'not reproduced', 'inconclusive')
    """
    if claimed_pct == 0:
        inside = max(abs(effect.low), abs(effect.high)) <= NO_EFFECT_PCT
        outside = effect.low > NO_EFFECT_PCT or effect.high < -NO_EFFECT_PCT
    else:
        ends = np.sign(claimed_pct) * effect.low, np.sign(claimed_pct) * effect.high
        inside, outside = min(ends) > 0, max(ends) < 0
    return "reproduced" if inside else "not reproduced" if outside else "inconclusive"


def same_figure(ours: Interval | float, claimed: float) -> str:
    """Whether a figure that was measured, not compared, is the paper's: by size, unlike `verdict`.

    Reproduced: our 95 % interval over seeds or matrices, or where there is none our value, lies wholly within 10 % of
    the paper's figure, or within 0.05 of one so near zero that this is more. Other: it does not, for whatever reason.

    >>> same_figure(4.4, 4.26), same_figure(Interval(4.4, 0.5), 4.26), same_figure(0.01, -0.027)
    ('reproduced', 'other', 'reproduced')
    """
    low, high = (ours.low, ours.high) if isinstance(ours, Interval) and ours.ci95 is not None else (_mean(ours),) * 2
    margin = max(abs(claimed) * SAME_FIGURE, SAME_NEAR_ZERO)
    return "reproduced" if claimed - margin <= low <= high <= claimed + margin else "other"


def _mean(figure: Interval | float) -> float:
    return figure.mean if isinstance(figure, Interval) else figure
