"""What fine-tuning a part of a model changed on its task and elsewhere, item by item, with intervals.

An item is a puzzle or a window of text. Changes are paired: the same item before and after.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.report.statistics import Interval, interval, verdict
from freezejax.atomic import write_atomically
from freezejax.training.metrics import read_json_lines
from freezejax.training.objectives.few import TRAINED

ITEMS = "items.json"  # in the folder of a run
# Where a run's losses are measured, on the straight line from the base (0) to where it ended; see `equal_terms`.
SHARES = (1.0, 1 / 3, 1 / 9)
MOVED = "moved"  # metric: the distance of the weights from the base
Row = Mapping[str, Any]


class Scale(NamedTuple):
    """What items are scored in."""

    unit: str
    item: str
    digits: int  # told after the point
    better: int  # 1: more is better; -1: less
    none: float  # a change whose interval lies within this is none
    step: float  # by which an item changes at least, if it changes; 0 = by anything
    loss: str  # unit of an item's loss


ACCURACY = Scale("% right", "test puzzles", 1, 1, 2.0, 100.0, "nats/answer")
BITS = Scale("bits/byte", "windows of text", 3, -1, 0.005, 0.0, "bits/byte")


class Claims(NamedTuple):
    """What a source says of rows by their names, on the scale of the items."""

    source: str
    over: str  # what the source tested on
    points: Mapping[str, float]  # change of all items together
    target: Mapping[str, float]  # change of the target alone
    noise: float  # what the source's own items could not tell from nothing: such a claim is one of no effect


NO_CLAIMS = Claims("", "", {}, {}, 0.0)


class Items(NamedTuple):
    """What is tested: the family of each item, which families are the target, and the scale."""

    families: Sequence[str]
    target: Sequence[str]
    scale: Scale
    questions: Sequence[str] | None = None  # items of one question rise and fall together; None: each has its own

    @property
    def in_target(self) -> np.ndarray:
        """Which items are of the target, bool [N]."""
        return np.isin(self.families, self.target)

    def changed(self, changes_SxN: np.ndarray, where_N: np.ndarray, step: float) -> Interval:
        """Mean change of some items; see `paired`."""
        questions = self.questions or range(len(self.families))
        return paired(changes_SxN[:, where_N], step, np.asarray(questions)[where_N])


class Found(NamedTuple):
    """What a run left of its items."""

    scores_N: np.ndarray
    losses_AxN: np.ndarray  # of every item, at `SHARES` of the way from the base; of the base itself one row
    moved: float = 0.0  # distance of the weights from the base


def write_items(directory: Path, found: Found, file: str = ITEMS, **more: str) -> None:
    """The score of every item after a run, and what `more` says beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    told = {
        "scores": found.scores_N.round(6).tolist(),
        "losses": found.losses_AxN.round(6).tolist(),
        MOVED: found.moved,
        **more,
    }
    write_atomically(directory / file, json.dumps(told) + "\n")


def read_items(directory: Path, file: str = ITEMS) -> Found:
    """What `write_items` wrote."""
    told = json.loads((directory / file).read_text(encoding="utf-8"))
    return Found(np.array(told["scores"]), np.array(told["losses"]), told[MOVED])


def measure(
    workdir: Path, rows: Sequence[Row], items: Items, claims: Claims = NO_CLAIMS, file: str = ITEMS
) -> dict[str, Any]:
    """Of every row but the first, the base, what changed, with 95 % intervals; see `paired`."""
    base, *others = rows
    told = [_row(workdir, row, *before_and_after(workdir, base, row, file), items, claims) for row in others]
    of_base = [read_items(folder(workdir, base["name"], seed), file).scores_N for seed in base["seeds"]]
    of_all, families, inside = np.mean(of_base, axis=0), np.asarray(items.families), items.in_target
    return {
        "scale": items.scale._asdict(),
        "target": [*items.target],
        "seeds": base["seeds"],
        "items": len(families),
        "base": {
            "families": {name: float(of_all[families == name].mean()) for name in dict.fromkeys(items.families)},
            "all": float(of_all.mean()),
            "target": float(of_all[inside].mean()),
            "elsewhere": float(of_all[~inside].mean()),
        },
        "rows": told,
    }


def folder(workdir: Path, name: str, seed: int) -> Path:
    """Of a run."""
    return workdir / "runs" / name / f"seed_{seed}"


def before_and_after(workdir: Path, base: Row, row: Row, file: str = ITEMS) -> tuple[list[Found], list[Found]]:
    """Of the seeds that a row and the base have: what the base left, and what the row did."""
    seeds = [seed for seed in row["seeds"] if seed in base["seeds"]]
    before, after = ([read_items(folder(workdir, run["name"], seed), file) for seed in seeds] for run in (base, row))
    return before, after


def _row(
    workdir: Path, row: Row, base: Sequence[Found], after: Sequence[Found], items: Items, claims: Claims
) -> dict[str, Any]:
    changes_SxN = np.array([now.scores_N - then.scores_N for then, now in zip(base, after, strict=True)])
    families, inside, step = np.asarray(items.families), items.in_target, items.scale.step
    overall = items.changed(changes_SxN, np.ones(len(families), bool), step)
    gain, decay = (items.changed(changes_SxN, where, step) for where in (inside, ~inside))
    claimed = [("overall", overall, claims.points), ("on the target", gain, claims.target)]
    return {
        "name": row["name"],
        "trained": _trained(workdir, row),
        "change": overall._asdict(),
        "gain": gain._asdict(),
        "decay": decay._asdict(),
        "by_seed": changes_SxN.mean(axis=1).tolist(),
        "families": {n: items.changed(changes_SxN, families == n, step)._asdict() for n in dict.fromkeys(families)},
        "claims": [
            _judged_claim(what, found, points[row["name"]], claims)
            for what, found, points in claimed
            if row["name"] in points
        ],
    }


def _judged_claim(what: str, found: Interval, points: float, claims: Claims) -> dict[str, Any]:
    judged = verdict(found, points if abs(points) > claims.noise else 0.0)
    return {"what": what, "points": points, "verdict": judged, "source": claims.source, "over": claims.over}


def _trained(workdir: Path, row: Row) -> int:
    """How many parameters train, fewer than the row's where few were chosen."""
    records = read_json_lines(folder(workdir, row["name"], row["seeds"][0]) / "metrics.jsonl")
    told = [record[TRAINED] for record in records if TRAINED in record]
    return int(told[-1] if told else row["trainable_params"])


def paired(changes_SxN: np.ndarray, step: float, questions_N: Sequence[Any] | np.ndarray) -> Interval:
    """Mean of paired changes of items, in each of some seeds, with the wider of two 95 % intervals.

    Over questions: a question's change is that of its items in all seeds. Of changes by `step` or nothing it is that of
    Agresti and Min (2005) for paired shares: one change of either sign, and as much without one, is added as half an
    item each, so that no interval has no width. Over seeds: Student's.

    >>> round(paired(np.array([[100.0, 0.0, -100.0, 0.0]]), 100.0, range(4)).ci95, 1)
    56.6
    """
    _, N = changes_SxN.shape
    if not N:
        return Interval(0.0, None)
    of_items, of_seeds = changes_SxN.mean(axis=0), interval(changes_SxN.mean(axis=1).tolist())
    _, question_N = np.unique(np.asarray(questions_N), return_inverse=True)
    squares = np.square(np.bincount(question_N, of_items - of_seeds.mean)).sum()
    over_items = 1.96 * float(np.sqrt(squares + step**2)) / (N + (2 if step else 0))
    return Interval(of_seeds.mean, max(over_items, of_seeds.ci95 or 0.0))


ELSEWHERE = ("forgets", "keeps", "gains there, too")


def judged(told: Mapping[str, Any], scale: Scale, words: Sequence[str] = ELSEWHERE) -> str:
    """What a change is, by its interval: one of the words for worse, the same and better, or noise.

    >>> judged({"mean": -3.0, "ci95": 1.0}, ACCURACY), judged({"mean": -3.0, "ci95": 4.0}, ACCURACY)
    ('forgets', 'noise')
    """
    if told["ci95"] is None:
        return "unknown"
    worse, same, better = words
    low, high = sorted(scale.better * (told["mean"] + sign * told["ci95"]) for sign in (-1, 1))
    if max(-low, high) <= scale.none:
        return same
    return worse if high < 0 else better if low > 0 else "noise"
