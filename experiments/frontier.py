"""Loss against stored bytes: do weights that are drawn from a seed and never trained win at any size of the file?

    python -m experiments.frontier --config=experiments/configs/frontier.py:tiny --workdir=DIR

Two sides meet at every budget of bytes: models with random maps in one place or another, and models that train every
weight: narrow ones, of few bits, of shared depth. Each way of building a model gets as many trials as any other. All
trials are compared on the first half of the validation text (WORKDIR/search); the best of each way is then trained
again with other seeds and judged on the second half (WORKDIR/report). With --config.search=FILE what was chosen on
another text is judged on this one: FILE is the summary.json of that search.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from experiments.engine import cli, matching, study
from experiments.engine.results import packing
from experiments.engine.variants import Contrast, Study, half_of_validation
from experiments.report import fronts, sides
from experiments.report.sides import FROZEN, SIDES, TRAINED
from experiments.ways import KERNELS, Trial, model_of, trials, variant_of
from freezejax import cost, models
from freezejax.errors import UserError

_FIRST_NEW_SEED = 100  # of the report; the search has seed 0


def search(config: ConfigDict, vocab_size: int) -> Study:
    """The study of all trials, on the first half of the validation text."""
    if config.model.family not in KERNELS:
        raise UserError(f"config.model.family={config.model.family!r}: expected one of {', '.join(KERNELS)}")
    found = [variant_of(trial, model_of(trial, config, vocab_size), config) for trial in trials(config)]
    return Study("frontier", found, evaluators=half_of_validation(0), pairs=lambda *_: [(0, 0)])


class Chosen(NamedTuple):
    """The best trial of a way at a budget."""

    trial: Trial
    model: Mapping[str, Any]
    score: float  # bits per byte of its file, on the half that it was chosen on
    step_flops: int  # of its matmuls, per token


def choose(config: ConfigDict, vocab_size: int, summary: Mapping[str, Any]) -> list[Chosen]:
    """Of every way and budget the trial whose file has the fewest bits per byte, by the summary of the search.

    Trained weights compress better or worse than was predicted, so its model is fitted again, by the bytes that its
    file did take, and for the vocabulary of the text that it is judged on.
    """
    rows = {row["name"]: row for row in summary["rows"]}
    groups: dict[tuple[int, str], list[Trial]] = {}
    for trial in trials(config):
        if trial.name in rows:
            groups.setdefault((trial.budget, trial.way.name), []).append(trial)
    best = [min(group, key=lambda trial: rows[trial.name]["packed_bpb_mean"]) for group in groups.values()]
    return [_refitted(trial, rows[trial.name], config, vocab_size) for trial in best]


def _refitted(trial: Trial, row: Mapping[str, Any], config: ConfigDict, vocab_size: int) -> Chosen:
    model = {**row["model"], "vocab_size": config.model.vocab_size or vocab_size}
    model = matching.fit_file(model, round(trial.budget**2 / row["artifact_bytes"]), **packing(config))
    flops = cost.matmul_flops_per_token(models.build(**model), matching.ALL_TRAIN, config.train.seq_len)
    return Chosen(trial, model, row["packed_bpb_mean"], flops)


def winners(best: Sequence[Chosen], budget: int) -> dict[str, Chosen]:
    """The best of each side at a budget, still by the search."""
    of = {side: [c for c in best if (c.trial.budget, c.trial.way.side) == (budget, side)] for side in SIDES}
    for side, found in of.items():
        if not found:
            raise UserError(
                f"the search has no finished trial of {side} at {budget:,} bytes; leave config.variants empty"
            )
    return {side: min(found, key=lambda chosen: chosen.score) for side, found in of.items()}


def report(best: Sequence[Chosen], config: ConfigDict) -> Study:
    """The study of the best trial of every way with maps, the best without and the narrow one.

    It has new seeds, and the second half of the validation text. Of a budget's two winners that whose step takes fewer
    FLOPs is trained once more, for as many FLOPs as the other.
    """
    variants, contrasts = [], []
    for budget in config.budgets:
        won, size = winners(best, budget), sides.size_name(budget)
        of_budget = [c for c in best if c.trial.budget == budget and _is_reported(c, won)]
        cheap, dear = sorted(won.values(), key=lambda chosen: chosen.step_flops)
        longer = variant_of(cheap.trial, cheap.model, config, dear.step_flops / cheap.step_flops)
        variants += [*(variant_of(chosen.trial, chosen.model, config) for chosen in of_budget), longer]
        names = {side: chosen.trial.name for side, chosen in won.items()}
        at_flops = {**names, cheap.trial.way.side: longer.name}
        contrasts += [
            Contrast(names[FROZEN], names[TRAINED], f"{size}: the best with maps against the best without"),
            Contrast(at_flops[FROZEN], at_flops[TRAINED], f"{size}: ... where both are trained for the same FLOPs"),
        ]
        contrasts += [
            Contrast(chosen.trial.name, names[TRAINED], f"{size}: {chosen.trial.way.name} at random")
            for chosen in of_budget
            if chosen.trial.way.side == FROZEN and chosen is not won[FROZEN]
        ]
        contrasts += [
            Contrast(name, chosen.trial.name, f"{size}: the best of {side} against narrow")
            for side, name in names.items()
            for chosen in of_budget
            if chosen.trial.way.name == "narrow" and name != chosen.trial.name
        ]
    unique = {variant.name: variant for variant in variants}  # two of the same FLOPs per step need no longer one
    return Study("frontier", list(unique.values()), contrasts, evaluators=half_of_validation(1), pairs=_new_seeds)


def _is_reported(chosen: Chosen, won: Mapping[str, Chosen]) -> bool:
    return chosen.trial.way.side == FROZEN or chosen is won[TRAINED] or chosen.trial.way.name == "narrow"


def _new_seeds(seeds: int, _: int) -> Iterator[tuple[int, int]]:
    """Training and base seed change together: the spread of a front is that of both."""
    return ((_FIRST_NEW_SEED + index, _FIRST_NEW_SEED + index) for index in range(seeds))


def conclude(config: ConfigDict, best: Sequence[Chosen], searched: str, judged: Mapping[str, Any]) -> sides.Cell:
    """What a pair of fronts shows, as plain values: `judged` is the summary of the report, `searched` another text."""
    budgets = []
    effects = {
        (item["variant"], item["reference"]): {"pct": item["packed_effect_pct"], "ci95": item["packed_effect_pct_ci95"]}
        for item in judged["contrasts"]
    }
    for budget in config.budgets:
        points = [
            sides.point(chosen.trial.way.name, chosen.trial.way.side, chosen.trial.options, row, chosen.step_flops)
            for chosen in best
            for row in judged["rows"]
            if chosen.trial.budget == budget and row["name"].partition("_for_")[0] == chosen.trial.name
        ]
        names = {side: chosen.trial.name for side, chosen in winners(best, budget).items()}
        budgets.append(sides.at_budget(budget, points, names, effects))
    return {
        "family": config.model.family,
        "optimizer": config.train.optimizer.name,
        "source": judged["data"]["source"],
        "tokenizer": judged["data"]["tokenizer"],
        "chosen_on": searched,
        "command": judged["command"],
        "budgets": budgets,
    }


def main() -> None:
    """Searches, reports, and says which side wins at every budget: WORKDIR/frontier.json."""
    config = flags.FLAGS.config.copy_and_resolve_references()
    if config.search:
        searched = _of_another_text(config)
    elif workdir := study.main(search, "search"):
        searched = _read(workdir / "search" / "summary.json")
    else:
        return
    flags.FLAGS.config.variants = ""  # those of the search have other names
    best: list[Chosen] = []

    def reported(config: ConfigDict, vocab_size: int) -> Study:
        best[:] = choose(config, vocab_size, searched)
        return report(best, config)

    if workdir := study.main(reported, "report"):
        elsewhere = searched["data"]["source"] if config.search else ""
        fronts.write(workdir, conclude(config, best, elsewhere, _read(workdir / "report" / "summary.json")))


def _of_another_text(config: ConfigDict) -> dict[str, Any]:
    field, path = f"config.search={config.search}", Path(config.search)
    if not path.is_file():
        raise UserError(f"{field}: no such file; give the summary.json of a search, WORKDIR/search/summary.json")
    try:
        found = _read(path)
        first = all(row["seeds"] == row["base_seeds"] == [0] for row in found["rows"])  # those of a report are others
        rows = {
            row["name"]: (row["model"]["family"], row["packed_bpb_mean"], row["artifact_bytes"])
            for row in found["rows"]
        }
        families, known = {family for family, *_ in rows.values()}, {trial.name for trial in trials(config)}
        if first and known & rows.keys() and families == {config.model.family} and found["data"]["source"]:
            return found
    except (ValueError, KeyError, TypeError):  # no JSON, or another one
        pass
    raise UserError(f"{field}: not the summary of a search over {config.model.family} at the budgets of this config")


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    cli.define_study_flags("experiments/configs/frontier.py:tiny")
    cli.run(main)
