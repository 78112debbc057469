"""What fine-tuning a part of a model gained on its task and cost elsewhere: tables and a picture, from every answer."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from experiments.report import page, plots
from experiments.report.statistics import Interval, verdict
from freezejax.atomic import write_atomically
from freezejax.training.metrics import read_json_lines

ANSWERS = "answers.json"  # in the folder of a run
NOISE_POINTS = 2.0  # a change whose interval lies within this is none
Row = Mapping[str, Any]


def write_answers(directory: Path, right_N: np.ndarray, nats_N: np.ndarray) -> None:
    """Which test puzzles a run answers, and the nats of each answer."""
    directory.mkdir(parents=True, exist_ok=True)
    told = {"right": "".join("01"[int(right)] for right in right_N), "nats": [round(float(x), 4) for x in nats_N]}
    write_atomically(directory / ANSWERS, json.dumps(told) + "\n")


def measure(
    workdir: Path, rows: Sequence[Row], families: Sequence[str], target: Sequence[str], claims: Mapping[str, float]
) -> dict[str, Any]:
    """Of every row but the first, the base, what changed, with 95 % intervals over the test puzzles of all seeds.

    `families` names the family of each test puzzle. Changes are paired, puzzle by puzzle and seed by seed: the bases
    are given, so that an interval says whether other puzzles would show the change, too.
    """
    base, *others = rows
    in_target = np.array([family in target for family in families])
    before = {seed: _right(workdir, base["name"], seed) for seed in base["seeds"]}
    told = [_row(workdir, row, before, np.array(families), in_target, claims) for row in others]
    for rule in ("moved", "target_ce"):
        _at_equal(told, rule)
    accuracy = {name: 100 * _mean(before, np.array(families) == name) for name in dict.fromkeys(families)}
    whole = np.ones(len(families), np.bool_)
    return {
        "target": [*target],
        "seeds": base["seeds"],
        "puzzles": len(families),
        "base": {**accuracy, "all": 100 * _mean(before, whole), "all but the target": 100 * _mean(before, ~in_target)},
        "rows": told,
    }


def _right(workdir: Path, name: str, seed: int) -> np.ndarray:
    found = json.loads((_folder(workdir, name, seed) / ANSWERS).read_text(encoding="utf-8"))
    return np.array([mark == "1" for mark in found["right"]])


def _folder(workdir: Path, name: str, seed: int) -> Path:
    return workdir / "runs" / name / f"seed_{seed}"


def _mean(right: Mapping[int, np.ndarray], chosen: np.ndarray) -> float:
    return float(np.mean([of_seed[chosen].mean() for of_seed in right.values()]))


def _row(
    workdir: Path,
    row: Row,
    before: Mapping[int, np.ndarray],
    families: np.ndarray,
    in_target: np.ndarray,
    claims: Mapping[str, float],
) -> dict[str, Any]:
    seeds = [seed for seed in row["seeds"] if seed in before]
    changes = np.concatenate([_right(workdir, row["name"], seed) * 1.0 - before[seed] for seed in seeds])
    again = lambda chosen: np.tile(chosen, len(seeds))  # noqa: E731
    every = points(changes)
    found = {
        "name": row["name"],
        "trainable_params": row["trainable_params"],
        "change": _told(every),
        "gain": _told(points(changes[again(in_target)])),
        "decay": _told(points(changes[again(~in_target)])),
        "families": {name: _told(points(changes[again(families == name)])) for name in dict.fromkeys(families)},
        "curve": _curve(workdir, row["name"], seeds, set(families[in_target]), set(families[~in_target])),
    }
    if row["name"] in claims:
        found["claim"] = {"points": claims[row["name"]], "verdict": verdict(every, claims[row["name"]])}
    return found


def points(changes: np.ndarray) -> Interval:
    """Mean of paired changes (-1, 0 or 1 each) in percentage points, with the normal 95 % interval of McNemar's test.

    >>> round(points(np.array([1.0, 0.0, -1.0, 0.0])).ci95, 1)
    69.3
    """
    if not len(changes):
        return Interval(0.0, None)
    error = np.sqrt(np.mean(np.square(changes)) - np.mean(changes) ** 2) / np.sqrt(len(changes))
    # No puzzle changed: the rule of three, for an interval of no width would claim what nobody knows.
    half = 1.96 * error if error else 3.0 / len(changes)
    return Interval(100 * float(np.mean(changes)), 100 * float(half))


def _told(effect: Interval) -> dict[str, float | None]:
    return {"points": effect.mean, "ci95": effect.ci95}


def _curve(workdir: Path, name: str, seeds: Sequence[int], target: set[str], rest: set[str]) -> list[dict[str, float]]:
    """Means over seeds after each evaluation: distance from the base, CE of answers of the target, and of the rest."""
    runs = []
    for seed in seeds:
        records = [r for r in read_json_lines(_folder(workdir, name, seed) / "metrics.jsonl") if "moved" in r]
        runs.append(
            [
                {
                    "step": record["step"],
                    "moved": record["moved"],
                    "target_ce": float(np.mean([record[f"answer_ce/{family}"] for family in sorted(target)])),
                    "rest_ce": float(np.mean([record[f"answer_ce/{family}"] for family in sorted(rest)])),
                }
                for record in records
            ]
        )
    together = zip(*runs, strict=True)  # all runs of a row are evaluated at the same steps
    return [{key: float(np.mean([run[key] for run in of_step])) for key in of_step[0]} for of_step in together]


def _at_equal(told: Sequence[dict[str, Any]], axis: str) -> None:
    """CE of the rest where every row has gone as far as the one that goes least: in distance, or in the target's CE."""
    far = {row["name"]: _reach(row["curve"], axis) for row in told if row["curve"]}
    if not far:
        return
    at = min(far.values()) if axis == "moved" else max(far.values())
    for row in told:
        row[f"at_equal_{axis}"] = {"at": at, "rest_ce": _crossing(row["curve"], axis, at)}


def _reach(curve: Sequence[Mapping[str, float]], axis: str) -> float:
    values = [point[axis] for point in curve]
    return max(values) if axis == "moved" else min(values)


def _crossing(curve: Sequence[Mapping[str, float]], axis: str, at: float) -> float | None:
    """CE of the rest where a curve first reaches a value, between two evaluations by a straight line."""
    sign = 1.0 if axis == "moved" else -1.0
    for i, point in enumerate(curve):
        if sign * point[axis] >= sign * at:
            if i == 0 or point[axis] == curve[i - 1][axis]:
                return point["rest_ce"]
            before = curve[i - 1]
            share = (at - before[axis]) / (point[axis] - before[axis])
            return before["rest_ce"] + share * (point["rest_ce"] - before["rest_ce"])
    return None


def as_markdown(found: Mapping[str, Any]) -> str:
    """The tables: what each row gained and forgot, and the rest's loss at an equal distance and an equal target."""
    base, seeds = found["base"], len(found["seeds"])
    lines = [
        f"The base answers {base['all']:.1f} % of {found['puzzles']} test puzzles, "
        f"{base['all but the target']:.1f} % of all but the target ({', '.join(found['target'])}); {seeds} seed(s). "
        "Changes are percentage points with 95 % intervals over puzzles.",
        "",
        "| trained | parameters | gain on the target | change elsewhere | which is | overall | the source | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        claim = row.get("claim")
        source, says = (f"{claim['points']:+.1f}", claim["verdict"]) if claim else ("", "")
        cells = [row["name"], f"{row['trainable_params']:,}", *map(_pm, (row["gain"], row["decay"]))]
        lines.append("| " + " | ".join([*cells, _judged(row["decay"]), _pm(row["change"]), source, says]) + " |")
    lines += [
        "",
        "| trained | moved | CE of the target | CE elsewhere | ... all moved as far | ... the target's CE as low |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        if row["curve"]:
            last = row["curve"][-1]
            equal = [row[f"at_equal_{axis}"]["rest_ce"] for axis in ("moved", "target_ce")]
            cells = [f"{last[key]:.3f}" for key in ("moved", "target_ce", "rest_ce")]
            cells += ["never" if x is None else f"{x:.3f}" for x in equal]
            lines.append("| " + " | ".join([row["name"], *cells]) + " |")
    return "\n".join(lines) + "\n"


def _pm(told: Mapping[str, float | None]) -> str:
    return f"{told['points']:+.1f}" + ("" if told["ci95"] is None else f" ±{told['ci95']:.1f}")


def _judged(told: Mapping[str, Any]) -> str:
    if told["ci95"] is None:
        return "unknown"
    low, high = told["points"] - told["ci95"], told["points"] + told["ci95"]
    if high < 0:
        return "forgets"
    if low > 0:
        return "gains there, too"
    return "keeps" if max(-low, high) <= NOISE_POINTS else "noise"


def picture(found: Mapping[str, Any]) -> str:
    """Change of accuracy by family and row, an SVG that stands alone."""
    rows = found["rows"]
    names, families = [row["name"] for row in rows], list(rows[0]["families"])
    table = np.array([[row["families"][family]["points"] for family in families] for row in rows])
    far = max(1.0, float(np.abs(table).max()))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        image = axes.imshow(table, cmap="RdBu", norm=TwoSlopeNorm(0.0, -far, far), aspect="auto")
        axes.set_xticks(range(len(families)), families, rotation=30, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.grid(visible=False)
        for y, x in np.ndindex(*table.shape):
            axes.text(x, y, f"{table[y, x]:+.0f}", ha="center", va="center", fontsize=7)
        figure.colorbar(image, label="change of accuracy, percentage points")

    alt = f"Change of accuracy of {len(families)} families of puzzles after training one part of the model, by part"
    return page.alone(plots.render("forgetting", alt, 1.2 + 0.25 * len(names), draw))
