"""Times of several programs, taken in turns, and how they compare."""

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_RESAMPLES = 2_000


def interleave(calls: Mapping[str, Callable[[], Any]], rounds: int, sample_seconds: float = 0.02) -> dict[str, Any]:
    """Seconds per call, float64 [rounds], of every program; a round times each of them once, in random order.

    A disturbance of the machine so hits all of them, and their ratio within a round is free of it. A program that
    takes less than `sample_seconds` is called several times per sample; every program the same number of times.

    Args:
      calls: by name; each returns when its result is there.
      rounds: samples of each.
      sample_seconds: least length of the samples of the fastest program, roughly.

    >>> sorted(interleave({"a": lambda: 1, "b": lambda: 2}, 3, sample_seconds=1e-5))
    ['a', 'b']
    """
    for call in calls.values():
        call()
    fastest = min(_seconds(call, 1) for call in calls.values())
    repeats = max(1, round(sample_seconds / max(fastest, 1e-6)))
    order, rng = list(calls), random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            found[name].append(_seconds(calls[name], repeats))
    return {name: np.array(seconds) for name, seconds in found.items()}


def compare(seconds: Mapping[str, np.ndarray], reference: str) -> list[dict[str, Any]]:
    """One row per program: median and least milliseconds, and the ratio to the reference.

    `ratio` is the median over rounds of the ratio within a round; `ratio_low` and `ratio_high` are the 95 %
    bootstrap interval of that median.

    >>> compare({"a": np.array([1.0, 2.0]), "b": np.array([2.0, 4.0])}, "a")[1]["ratio"]
    2.0
    """
    return [{"name": name, **_row(times, seconds[reference])} for name, times in seconds.items()]


def _row(times: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    ratios = times / reference
    picks = np.random.default_rng(0).integers(len(ratios), size=(_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5])
    return {
        "ms_median": 1e3 * float(np.median(times)),
        "ms_min": 1e3 * float(times.min()),
        "ratio": float(np.median(ratios)),
        "ratio_low": float(low),
        "ratio_high": float(high),
    }


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
