"""Intervals over seeds, paired effects, and the rule that turns an effect into a verdict."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

NO_EFFECT_PCT = 1.0  # a claim of "no effect" means within this many percent


class Interval(NamedTuple):
    """Mean and half-width of the 95 % interval; the half-width of a single value is None.

    >>> Interval(2.0, 0.5).low, Interval(2.0, 0.5).high
    (1.5, 2.5)
    """

    mean: float
    ci95: float | None

    @property
    def low(self) -> float:
        """Lower end; minus infinity when the half-width is unknown."""
        return -np.inf if self.ci95 is None else self.mean - self.ci95

    @property
    def high(self) -> float:
        """Upper end; infinity when the half-width is unknown."""
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
    return Interval(float(array.mean()), float(stats.t.ppf(0.975, len(array) - 1) * error))


def paired_effect_pct(ours: Sequence[float], reference: Sequence[float]) -> Interval:
    """Relative difference in percent, seed by seed (same seed: same batches), with its interval.

    >>> paired_effect_pct([3.0, 6.0], [2.0, 4.0])
    Interval(mean=50.0, ci95=0.0)
    """
    pairs = zip(ours, reference, strict=True)
    return interval([100.0 * (our - other) / other for our, other in pairs])


def verdict(effect: Interval, claimed_pct: float) -> str:
    """Whether an effect bears out a claim, by its 95 % interval alone. It judges the sign, not the size.

    Reproduced: the interval lies wholly on the claim's side of zero. Not reproduced: wholly on the other
    side. A claim of 0 is a claim of no effect: wholly within, or wholly outside, +-1 %. Else
    inconclusive, as is every effect without an interval.

    >>> verdict(Interval(-3.0, 1.0), -2.2), verdict(Interval(3.0, 1.0), -2.2)
    ('reproduced', 'not reproduced')
    >>> verdict(Interval(3.0, None), -2.2), verdict(Interval(0.1, 0.2), 0.0)
    ('inconclusive', 'reproduced')
    """
    if effect.ci95 is None:
        return "inconclusive"
    if claimed_pct == 0:
        inside = max(abs(effect.low), abs(effect.high)) <= NO_EFFECT_PCT
        outside = effect.low > NO_EFFECT_PCT or effect.high < -NO_EFFECT_PCT
    else:
        ends = np.sign(claimed_pct) * effect.low, np.sign(claimed_pct) * effect.high
        inside, outside = min(ends) > 0, max(ends) < 0
    return "reproduced" if inside else "not reproduced" if outside else "inconclusive"
