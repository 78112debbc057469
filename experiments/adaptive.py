"""Does freezing what has stopped to learn save time? Policies that measure, against fixed schedules, and none.

    python -m experiments.adaptive --config=experiments/configs/adaptive.py:tiny --workdir=DIR

Each policy (`freezejax.training.adaptive`) trains from scratch and in fine-tuning. Time is told twice: what all steps
took, with what was measured and waited for, and what the steps alone took, as in a run so long that compiling new masks
counts for nothing. A run without freezing takes longer and ends lower, so there are shorter ones, each
with a whole learning-rate schedule: between them stands what training everything reaches in the time of a policy (equal
time), and the time in which it reaches the same loss (equal loss). Paper 62 proposes to freeze matrices of low
participation ratio early, and expects 2 to 3 times the speed.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import bases
from experiments.bases import Base
from experiments.engine import cli, study
from experiments.engine.fields import check_range
from experiments.engine.tasks import Decide, Start, Task
from experiments.engine.variants import Contrast, Run, Study, Variant
from experiments.report import series
from experiments.report.statistics import Interval, interval
from freezejax import models
from freezejax.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.paths import check_known
from freezejax.schedules import FreezeSchedule, layer_by_layer
from freezejax.training.adaptive import FILE, Policy
from freezejax.training.batches import TokenBatches
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.policies import Fisher, GradientNorm, LowParticipation, Plasticity, each_matrix

CLAIM = 2.0  # times as fast: the lower end of what paper 62 expects
CLOCKS = {"seconds": "with all that was waited for", "step_seconds": "by its steps alone"}
WAYS = ("scratch", "tuning")
POLICIES = ("gradient", "gradient_thaw", "fisher", "plasticity", "low_participation")
FIXED = ("fixed_bottom", "fixed_top")


def make_study(config: ConfigDict, vocab_size: int, base: Base) -> Study:
    """Everything trained for several lengths, two fixed schedules and four policies: from scratch and from the base."""
    _check(config)
    model, variants, contrasts = base.model(config, vocab_size), list[Variant](), list[Contrast]()
    for way in [way.strip() for way in config.ways.split(",")]:
        start = base.start() if way == "tuning" else None
        of_way = list(_variants(config, model, way, start))
        variants += of_way
        full = f"{way}_{_none(100)}"
        contrasts += [
            Contrast(v.name, full, f"{way}: the same steps, frozen on the way")
            for v in of_way
            if "_none_" not in v.name
        ]
    return Study("adaptive", variants, contrasts, files=False, findings=findings)


def _check(config: ConfigDict) -> None:
    for way in config.ways.split(","):
        check_known(way.strip(), WAYS, f"config.ways: there is no way {way.strip()!r}")
    check_range(config, "every", 1)
    check_range(config, "lengths", 1, 100)
    for field in ("fixed.first", "fixed.last", "participation.share", "participation.most"):
        check_range(config, field, 0, 1)
    for field in ("gradient.threshold", "gradient.thaw", "fisher.threshold", "plasticity.threshold"):
        check_range(config, field, 0)
    if "plasticity" in config.policies and config.train.batch_size < 2:
        raise UserError(f"config.train.batch_size={config.train.batch_size}: plasticity compares 2 or more examples")


def _none(pct: int) -> str:
    return f"none_{pct}"


def _variants(config: ConfigDict, model: dict[str, Any], way: str, start: Start | None) -> Iterator[Variant]:
    train = config.train.to_dict() | {"optimizer": {**config.train.optimizer.to_dict()}}
    train["optimizer"]["learning_rate"] = config.learning_rates[way]
    everything = FreezeSchedule([(0, [(".*", True)])])
    for pct in sorted({100, *config.lengths}, reverse=True):
        steps = max(1, round(train["steps"] * pct / 100))
        yield Variant(f"{way}_{_none(pct)}", model, {**train, "steps": steps}, everything, start=start)
    shapes = models.build(**model).abstract_params()
    layers = model["num_layers"]
    starts = [*map(float, np.linspace(config.fixed.first, config.fixed.last, layers - 1))]
    for name in FIXED:
        schedule = layer_by_layer(shapes, starts, order=name.removeprefix("fixed_"))
        yield Variant(f"{way}_{name}", model, train, schedule, start=start)
    for name in (name.strip() for name in config.policies.split(",")):
        check_known(name, POLICIES, f"config.policies: there is no policy {name!r}")
        decide = functools.partial(_DECIDE[name], config=config)
        yield Variant(f"{way}_{name}", model, train, everything, start=start, policy=_policy(decide))


def _policy(decide: Callable[[Task], Policy]) -> Decide:
    return decide


def _probe(task: Task) -> dict[str, np.ndarray]:
    """A batch that no run trains on: of the validation text, by the run's seed. (Some of it is scored in the end.)"""
    return next(TokenBatches(task.corpus.val, task.config))


def _gradient(task: Task, config: ConfigDict) -> Policy:
    return _by_gradients(GradientNorm, task, config, config.gradient.threshold)


def _gradient_thaw(task: Task, config: ConfigDict) -> Policy:
    return _by_gradients(GradientNorm, task, config, config.gradient.threshold, config.gradient.thaw)


def _fisher(task: Task, config: ConfigDict) -> Policy:
    return _by_gradients(Fisher, task, config, config.fisher.threshold)


def _by_gradients(kind: type[GradientNorm], task: Task, config: ConfigDict, *thresholds: float) -> Policy:
    groups = each_matrix(bases.kernels(task.model.abstract_params()))
    objective = LanguageModelling(task.model, task.config.compute_dtype)
    return kind(config.every, groups, objective, _probe(task), *thresholds)


def _plasticity(task: Task, config: ConfigDict) -> Policy:
    groups = {str(i): f"blocks/{i}/.*" for i in range(task.model.config.num_layers - 1)}  # the last keeps training
    return Plasticity(config.every, groups, task.model, _probe(task)["inputs"], config.plasticity.threshold)


def _low_participation(task: Task, config: ConfigDict) -> Policy:
    groups = each_matrix(bases.kernels(task.model.abstract_params()))
    return LowParticipation(config.every, groups, config.participation.share, config.participation.most)


_DECIDE: dict[str, Callable[..., Policy]] = {
    "gradient": _gradient,
    "gradient_thaw": _gradient_thaw,
    "fisher": _fisher,
    "plasticity": _plasticity,
    "low_participation": _low_participation,
}


def findings(found: Mapping[str, Any]) -> list[str]:
    """Of every schedule and policy: its speed at equal loss and its loss at equal time, and the claim's verdict."""
    rows, sentences = {row["name"]: row for row in found["rows"]}, []
    for way in WAYS:
        full = [rows[name] for name in rows if name.startswith(f"{way}_none_")]
        for name in (*FIXED, *POLICIES):
            if (row := rows.get(f"{way}_{name}")) is None or len(full) < 2:
                continue
            times = {clock: [_against(run, full, clock) for run in row["runs"]] for clock in CLOCKS}
            if lacking := sum(None in each for each in zip(*times.values(), strict=True)):
                whole = len(row["runs"])
                sentences.append(
                    f"{row['name']}: not judged, {lacking} of {whole} seeds have no time to compare, as after a stop."
                )
                continue
            texts = []
            for clock, of_clock in times.items():
                speed, loss = (interval(side) for side in zip(*filter(None, of_clock), strict=True))
                told = _verdict(speed) if name == "low_participation" else ""
                texts.append(
                    f"{CLOCKS[clock]} {_text(speed, 2)} times as fast at equal loss, {_text(loss, 2, '+')} % of loss "
                    f"at equal time{told}"
                )
            sentences.append(f"{row['name']} against training everything: {'; '.join(texts)}.")
    return sentences


def _against(run: Mapping[str, Any], full: Sequence[Mapping[str, Any]], clock: str) -> tuple[float, float] | None:
    """Of one run: speed at equal loss, and loss at equal time in percent, against training everything with its seed.

    Between the lengths that were run both are interpolated, the time as the loss falls; beyond them they are those of
    the nearest.
    """
    same = [other for row in full for other in row["runs"] if other["seed"] == run["seed"]]
    if any(each[clock] is None for each in (run, *same)) or len(same) < 2:
        return None
    times, losses = (np.array([each[field] for each in same]) for field in (clock, "val_ce"))
    by_time, by_loss = np.argsort(times), np.argsort(losses)
    at_time = float(np.interp(run[clock], times[by_time], losses[by_time]))
    at_loss = float(np.interp(run["val_ce"], losses[by_loss], times[by_loss]))
    return at_loss / run[clock], 100 * (run["val_ce"] / at_time - 1)


def _verdict(speed: Interval) -> str:
    told = "reproduced" if speed.low >= CLAIM else "not reproduced" if speed.high < CLAIM else "inconclusive"
    return f" (paper 62 expects 2 to 3 times as fast: {told})"


def _text(value: Interval, digits: int, sign: str = "") -> str:
    half = "" if value.ci95 is None else f" +- {value.ci95:.{digits}f}"
    return f"{value.mean:{sign}.{digits}f}{half}"


def main() -> None:
    """Makes the base if need be, runs every variant, then draws what the policies measured in each first run."""
    base = bases.of_flags(make_study)
    workdir = study.main(functools.partial(make_study, base=base), tokenizer=base.tokenizer)
    if workdir is None:
        return
    lines = {
        file.parts[-3]: file.read_text(encoding="utf-8").splitlines()
        for file in sorted(workdir.glob(f"runs/*/{Run('', 0).folder}/{FILE}"))
    }
    if drawn := series.picture({name: [json.loads(line) for line in of_run] for name, of_run in lines.items()}):
        write_atomically(workdir / "measured.svg", drawn)
        print(f"What the policies measured: {workdir / 'measured.svg'}")


if __name__ == "__main__":
    cli.define_study_flags("experiments/configs/adaptive.py:tiny")
    cli.run(main)
