"""What fine-tuning a part of a model changed on its task and elsewhere, item by item, with intervals.

An item is a puzzle or a window of text. Changes are paired: the same item before and after.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.report.statistics import Interval, verdict
from freezejax.atomic import write_atomically
from freezejax.training.metrics import read_json_lines

ITEMS = "items.json"  # in the folder of a run
MOVED, TRAINED = "moved", "trained"  # metrics: the distance from the base; how many parameters train, where few do
Row = Mapping[str, Any]


class Scale(NamedTuple):
    """What items are scored in."""

    unit: str
    item: str
    digits: int  # told after the point
    better: int  # 1: more is better; -1: less
    none: float  # a change whose interval lies within this is none
    step: float  # by which an item changes at least, if it changes; 0 = by anything
    loss: str  # metrics `LOSS/FAMILY`: the loss of a family after an evaluation


ACCURACY = Scale("% right", "test puzzles", 1, 1, 2.0, 100.0, "answer_ce")
BITS = Scale("bits/byte", "windows of text", 3, -1, 0.005, 0.0, "ce")


class Claims(NamedTuple):
    """What a source says of rows by their names: changes of all items together, on the scale of the items."""

    source: str
    over: str  # what the source tested on
    points: Mapping[str, float]


NO_CLAIMS = Claims("", "", {})


class Items(NamedTuple):
    """What is tested: the family of each item, which families are the target, and the scale."""

    families: Sequence[str]
    target: Sequence[str]
    scale: Scale

    @property
    def in_target(self) -> np.ndarray:
        """Which items are of the target, bool [N]."""
        return np.isin(self.families, self.target)


def write_items(directory: Path, values_N: np.ndarray, file: str = ITEMS) -> None:
    """The score of every item after a run."""
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / file, json.dumps([round(float(x), 6) for x in values_N]) + "\n")


def measure(workdir: Path, rows: Sequence[Row], items: Items, claims: Claims, file: str = ITEMS) -> dict[str, Any]:
    """Of every row but the first, the base, what changed, with 95 % intervals over items.

    An item's change is the mean over the seeds that a row has, so that an interval says whether other puzzles, or other
    text, would show the change, too; the bases are given.
    """
    base, *others = rows
    before = {seed: _values(workdir, base["name"], seed, file) for seed in base["seeds"]}
    told = [_row(workdir, row, before, items, claims, file) for row in others]
    start = _curve(workdir, base["name"], base["seeds"], items)[-1:]
    for row in told:
        row["curve"] = [{**point, "step": 0, MOVED: 0.0} for point in start] + row["curve"]
    for axis in (MOVED, "target_ce"):
        _at_equal(told, axis)
    of_all, families = np.mean([*before.values()], axis=0), np.asarray(items.families)
    level = {name: float(of_all[families == name].mean()) for name in dict.fromkeys(items.families)}
    inside = items.in_target
    return {
        "scale": items.scale._asdict(),
        "target": [*items.target],
        "seeds": base["seeds"],
        "items": len(families),
        "base": {
            "families": level,
            "all": float(of_all.mean()),
            "target": float(of_all[inside].mean()),
            "elsewhere": float(of_all[~inside].mean()),
        },
        "rows": told,
    }


def _values(workdir: Path, name: str, seed: int, file: str) -> np.ndarray:
    return np.array(json.loads((folder(workdir, name, seed) / file).read_text(encoding="utf-8")))


def folder(workdir: Path, name: str, seed: int) -> Path:
    """Of a run."""
    return workdir / "runs" / name / f"seed_{seed}"


def _row(
    workdir: Path, row: Row, before: Mapping[int, np.ndarray], items: Items, claims: Claims, file: str
) -> dict[str, Any]:
    seeds = [seed for seed in row["seeds"] if seed in before]
    changes = np.mean([_values(workdir, row["name"], seed, file) - before[seed] for seed in seeds], axis=0)
    families, step = np.asarray(items.families), items.scale.step
    every = paired(changes, step)
    curve = _curve(workdir, row["name"], seeds, items)
    found: dict[str, Any] = {
        "name": row["name"],
        "trained": int(curve[-1][TRAINED]) if curve and TRAINED in curve[-1] else row["trainable_params"],
        "change": every._asdict(),
        "gain": paired(changes[items.in_target], step)._asdict(),
        "decay": paired(changes[~items.in_target], step)._asdict(),
        "families": {n: paired(changes[families == n], step)._asdict() for n in dict.fromkeys(items.families)},
        "curve": curve,
    }
    if row["name"] in claims.points:
        points = claims.points[row["name"]]
        found["claim"] = {
            "points": points,
            "verdict": verdict(every, points),
            "source": claims.source,
            "over": claims.over,
        }
    return found


def paired(changes: np.ndarray, step: float) -> Interval:
    """Mean of paired changes with a normal 95 % interval: of changes by `step` or nothing that of McNemar's test.

    >>> round(paired(np.array([100.0, 0.0, -100.0, 0.0]), 100.0).ci95, 1)
    69.3
    """
    if not len(changes):
        return Interval(0.0, None)
    error = float(np.std(changes) / np.sqrt(len(changes)))
    # No item changed: the rule of three, for an interval of no width would claim what nobody knows.
    return Interval(float(np.mean(changes)), 1.96 * error if error else 3.0 * step / len(changes))


def _curve(workdir: Path, name: str, seeds: Sequence[int], items: Items) -> list[dict[str, float]]:
    """Means over seeds after each evaluation: distance from the base, loss of the target, and of the rest."""
    families, loss = list(dict.fromkeys(items.families)), items.scale.loss
    rest = [family for family in families if family not in items.target]
    runs = []
    for seed in seeds:
        records = read_json_lines(folder(workdir, name, seed) / "metrics.jsonl")
        runs.append(
            [
                {
                    **{key: record[key] for key in ("step", MOVED, TRAINED) if key in record},
                    "target_ce": float(np.mean([record[f"{loss}/{family}"] for family in items.target])),
                    "rest_ce": float(np.mean([record[f"{loss}/{family}"] for family in rest])),
                }
                for record in records
                if f"{loss}/{families[0]}" in record
            ]
        )
    together = zip(*runs, strict=True)  # all runs of a row are evaluated at the same steps
    return [{key: float(np.mean([run[key] for run in of_step])) for key in of_step[0]} for of_step in together]


def _at_equal(told: Sequence[dict[str, Any]], axis: str) -> None:
    """Loss of the rest where every row has gone as far as the one that goes least: in distance, or the target's loss.

    All rows: of those that lower the target's loss at all; the others have no such place.
    """
    far = [_reach(row["curve"], axis) for row in told if len(row["curve"]) > 1]
    start = told[0]["curve"][0][axis] if told and told[0]["curve"] else 0.0
    far = [value for value in far if value != start]
    if not far:
        return
    at = min(far) if axis == MOVED else max(far)
    for row in told:
        row[f"at_equal_{axis}"] = {"at": at, "rest_ce": _crossing(row["curve"], axis, at)}


def _reach(curve: Sequence[Mapping[str, float]], axis: str) -> float:
    values = [point[axis] for point in curve]
    return max(values) if axis == MOVED else min(values)


def _crossing(curve: Sequence[Mapping[str, float]], axis: str, at: float) -> float | None:
    """Loss of the rest where a curve first reaches a value, between two evaluations by a straight line."""
    sign = 1.0 if axis == MOVED else -1.0
    for i, point in enumerate(curve):
        if sign * point[axis] >= sign * at:
            if i == 0 or point[axis] == curve[i - 1][axis]:
                return point["rest_ce"]
            before = curve[i - 1]
            share = (at - before[axis]) / (point[axis] - before[axis])
            return before["rest_ce"] + share * (point["rest_ce"] - before["rest_ce"])
    return None


def judged(told: Mapping[str, Any], scale: Scale) -> str:
    """What a change elsewhere is, by its interval.

    >>> judged({"mean": -3.0, "ci95": 1.0}, ACCURACY), judged({"mean": -3.0, "ci95": 4.0}, ACCURACY)
    ('forgets', 'noise')
    """
    if told["ci95"] is None:
        return "unknown"
    low, high = sorted(scale.better * (told["mean"] + sign * told["ci95"]) for sign in (-1, 1))
    if max(-low, high) <= scale.none:
        return "keeps"
    return "forgets" if high < 0 else "gains there, too" if low > 0 else "noise"
