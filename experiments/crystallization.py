"""Can a matrix be replaced before fine-tuning? Its values kept, its best rank 1, a random one of its norm (paper 63).

    python -m experiments.crystallization --config=experiments/configs/crystallization.py:tiny --workdir=DIR

Every row replaces one matrix of a pretrained model by a crystal (`freezejax.weights.crystal`), freezes it and
fine-tunes the rest, against the same run with everything trained. WORKDIR/matrices.md has every matrix: how many
dimensions it fills, beside the paper's figures, and of those that are replaced what that costs before fine-tuning and
after. Whether a measured figure is the paper's: `statistics.same_figure`.
"""

import functools
import json
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from experiments import bases, diagnostics
from experiments.bases import Base
from experiments.diagnostics import Diagnostics, name_of
from experiments.engine import cli, study
from experiments.engine.fields import check_range
from experiments.engine.tasks import Start
from experiments.engine.variants import ANY, Contrast, Evaluators, Paper, Study, Variant
from experiments.report import claimed
from experiments.report.claimed import Claim
from experiments.report.statistics import same_figure
from experiments.report.table import Column, markdown
from freezejax import models
from freezejax.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.masks import compile_pattern
from freezejax.paths import PyTree
from freezejax.roles import is_weight
from freezejax.schedules import FreezeSchedule
from freezejax.weights import matrix, recast

FULL, FILE = "full", "matrices.md"
# Paper 63's figures of the weights: participation ratio, and first component in percent.
PAPER = {
    **{f"L{i}_attn_c_attn": (pr, None) for i, pr in {0: 202.7, 3: 198.6, 4: 196.8, 6: 205.4, 7: 205.9}.items()},
    "L0_attn_c_proj": (145.3, 12.0),
    "L3_attn_c_proj": (75.8, 21.7),
    "L4_attn_c_proj": (84.5, 22.4),
    "L6_attn_c_proj": (86.6, 29.6),
    "L7_attn_c_proj": (94.9, 36.6),
}
FORMS: dict[str, dict[str, Any]] = {
    "kept": {"form": "kept"},
    "rank_1": {"form": "low_rank", "rank": 1},
    "random": {"form": "random"},
    "mean": {"form": "mean"},
}
_PAPER = "paper 63 (crystallization)"
_CLAIMED, _BEFORE_PCT = "L4_attn_c_proj", -0.44  # what its rank 1 changes before fine-tuning
_CLAIMS = {  # of that matrix in a model of 8 layers: percent against full fine-tuning
    "kept": (0.0, "frozen trained values cost nothing (-0.2 %)"),
    "rank_1": (0.0, "its rank 1 costs nothing (0.0 %)"),
    "random": (-1.6, "a random one is best of all (-1.6 %)"),
}


def make_study(config: ConfigDict, vocab_size: int, base: Base) -> Study:
    """Everything trained, and each named matrix in each form."""
    check_range(config, "diagnostics.batches", 1)
    model, train = base.model(config, vocab_size), config.train.to_dict()
    forms = [form.strip() for form in config.crystals.forms.split(",")]
    for form in forms:
        if form not in FORMS:
            raise UserError(f"config.crystals.forms: no form {form!r}; expected some of {', '.join(FORMS)}")
    start = base.start()
    variants = [Variant(FULL, model, train, FreezeSchedule([(0, [(".*", True)])]), start=start)]
    for form in sorted(forms, key=lambda form: form != "kept"):  # the kept ones and the first may train together
        for kernel in chosen(model, config.crystals.pattern):
            schedule = FreezeSchedule([(0, [(f"{re.escape(kernel)}(/.*)?", False), (".*", True)])])
            rules = [{"pattern": re.escape(kernel), "kind": "crystal", **FORMS[form]}]
            of_form = Variant(f"{form}_{name_of(kernel)}", model, train, schedule, start=start)
            if form != "kept":
                of_form = replace(of_form, model={**model, "weights": rules}, start=_replaced(base, rules))
            if name_of(kernel) == _CLAIMED and form in _CLAIMS and bases.as_in_papers(model):
                pct, claim = _CLAIMS[form]
                of_form = replace(of_form, papers=[Paper(ANY, _PAPER, None, pct, claim)])
            variants.append(of_form)
    contrasts = [
        Contrast(v.name, v.name.replace("random_", "rank_1_", 1), "a random matrix against its best rank 1")
        for v in variants
        if v.name.startswith("random_") and "rank_1" in forms
    ]
    return Study("crystallization", variants, contrasts, files=False, sweep=config.sweep, findings=findings)


def chosen(model: Mapping[str, Any], pattern: str, field: str = "config.crystals.pattern") -> list[str]:
    """The matrices inside the blocks whose whole path a pattern matches; UserError where there is none."""
    kernels = bases.kernels(models.build(**model).abstract_params())
    found = [kernel for kernel in kernels if compile_pattern(pattern).fullmatch(kernel)]
    if not found:
        raise UserError(f"{field}={pattern!r} matches no matrix; there are {', '.join(kernels[:4])} ...")
    return found


def _replaced(base: Base, rules: Any) -> Start:
    def start(task: Any) -> PyTree:
        key = jax.random.key(task.config.seed)  # other random matrices in every run
        return recast(base.params(), rules, key)

    return start


def findings(found: Mapping[str, Any]) -> list[str]:
    """How many of the matrices cost nothing in each form, and where a random one is best: by the intervals."""
    sentences = []
    for form in FORMS:
        rows = [row for row in found["rows"] if row["name"].startswith(f"{form}_L")]
        ends = [(row["delta_pct"], row["delta_pct_ci95"]) for row in rows if row["delta_pct_ci95"] is not None]
        if ends:
            small = sum(abs(mean) + half <= 1.0 for mean, half in ends)
            better, worse = (sum(sign * mean - half > 0 for mean, half in ends) for sign in (-1, 1))
            low, high = min(mean for mean, _ in ends), max(mean for mean, _ in ends)
            sentences.append(
                f"{form}: of {len(ends)} matrices {small} lie wholly within 1 % of full fine-tuning, {better} are "
                f"better, {worse} worse; from {low:+.2f} to {high:+.2f} %."
            )
    return sentences


def before(base: Base, config: ConfigDict) -> dict[str, dict[str, float]]:
    """Loss of the base with each matrix in each form, before fine-tuning, in percent against the base as it is."""
    corpus = study.load_corpus(config, base.tokenizer)
    model = base.model(config, corpus.tokenizer.vocab_size)
    built, params = models.build(**model), base.params()
    score = Evaluators(config, corpus).of(model, built.apply, config.train.to_dict())
    whole = score(params)["val_ce"]

    def cost(kernel: str, options: Mapping[str, Any]) -> float:
        crystal = recast(params, [{"pattern": re.escape(kernel), "kind": "crystal", **options}], jax.random.key(0))
        plain = jax.tree.map(lambda node: matrix(node) if is_weight(node) else node, crystal, is_leaf=is_weight)
        return 100 * (score(plain)["val_ce"] / whole - 1)

    forms = {form: FORMS[form] for form in config.crystals.forms.replace(" ", "").split(",") if form != "kept"}
    kernels = chosen(model, config.crystals.pattern)
    return {name_of(kernel): {form: cost(kernel, options) for form, options in forms.items()} for kernel in kernels}


def scan(found: Mapping[str, Any], measured: Diagnostics, earlier: Mapping[str, Mapping[str, float]]) -> str:
    """Every matrix as a row: its dimensions, and where it was replaced what that costs before fine-tuning and after."""
    after = {row["name"]: row for row in found["rows"]}
    items = [{"name": name, **figures} for name, figures in measured.items()]
    forms = [form for form in FORMS if any(name.startswith(f"{form}_L") for name in after)]
    columns = [
        Column("matrix", operator.itemgetter("name"), kind="name"),
        Column("PR", operator.itemgetter("participation ratio"), "{:.1f}".format),
        Column("first component", lambda item: 100 * item["first component"], "{:.1f} %".format),
        Column("stable rank", operator.itemgetter("stable rank"), "{:.1f}".format),
        Column("paper: PR", lambda item: PAPER.get(item["name"], (None, None))[0], "{:.1f}".format),
        Column("paper: first component", lambda item: PAPER.get(item["name"], (None, None))[1], "{:.1f} %".format),
        Column("verdicts", _verdicts, kind="words"),
    ]
    for form in forms:
        if form != "kept":
            told = functools.partial(lambda item, form: earlier.get(item["name"], {}).get(form), form=form)
            columns.append(Column(f"{form}, before", told, "{:+.2f} %".format))
        told = functools.partial(lambda item, form: after.get(f"{form}_{item['name']}", {}).get("delta_pct"), form=form)
        columns.append(Column(f"{form}, after", told, "{:+.2f} %".format))
    return markdown(columns, items) + "\n"


def _verdicts(item: Mapping[str, Any]) -> str | None:
    """Of a matrix that the paper has, whether our figures are its."""
    ours = item["participation ratio"], 100 * item["first component"]
    claimed = PAPER.get(item["name"], (None, None))
    told = [same_figure(value, paper) for value, paper in zip(ours, claimed, strict=True) if paper is not None]
    return ", ".join(told) or None


def claims(measured: Diagnostics, earlier: Mapping[str, Mapping[str, float]], data: str) -> Iterator[Claim]:
    """The paper's figures of the weights, ours beside each."""
    for name, (ratio, first) in PAPER.items():
        if name not in measured:
            continue
        of = f"{name} (crystallization, {data})"
        yield claimed.of_figure(
            _PAPER, f"participation ratio of {name}", ratio, measured[name]["participation ratio"], of, digits=1
        )
        if first is not None:
            ours = 100 * measured[name]["first component"]
            yield claimed.of_figure(_PAPER, f"first component of {name}", first, ours, of, digits=1, unit=" %")
    if (cost := earlier.get(_CLAIMED, {}).get("rank_1")) is not None:
        told = f"rank 1 in place of {_CLAIMED}, before fine-tuning"
        yield claimed.of_figure(_PAPER, told, _BEFORE_PCT, cost, f"rank_1 of it (crystallization, {data})", unit=" %")


def main() -> None:
    """Makes the base if need be, measures it, runs every variant, and writes one table of all matrices."""
    base = bases.of_flags(make_study)
    config, made = flags.FLAGS.config, functools.partial(make_study, base=base)
    if (workdir := study.main(made, tokenizer=base.tokenizer)) is None:
        return
    found = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
    measured = diagnostics.of_base(base, config, workdir)
    path, earlier = Path(workdir) / FILE, before(base, config)
    write_atomically(path, scan(found, measured, earlier))
    if bases.as_in_papers(found["rows"][0]["model"]):
        claimed.write(Path(workdir) / claimed.FILE, claims(measured, earlier, found["data"]["source"]))
    print(f"Every matrix: {path}")


if __name__ == "__main__":
    cli.define_study_flags("experiments/configs/crystallization.py:tiny")
    cli.run(main)
