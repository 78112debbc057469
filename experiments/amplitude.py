"""Do the amplitudes of a matrix's rows have structure, and does training one type of matrix do the work? (paper 62)

    python -m experiments.amplitude --config=experiments/configs/amplitude.py:tiny --workdir=DIR

What is measured of the base's matrices stands in experiments/amplitudes.py; WORKDIR/amplitudes.md has its tables. The
runs fine-tune one type of matrix at a time, everything, and nothing: the efficiency of a type is its share of what full
fine-tuning gains.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import amplitudes, bases
from experiments.bases import Base
from experiments.engine import cli, study
from experiments.engine.variants import Contrast, Study, Variant
from experiments.report import claimed
from experiments.report.claimed import Claim
from experiments.report.statistics import Interval, interval, same_figure
from experiments.report.table import with_ci
from freezejax import models
from freezejax.atomic import write_atomically
from freezejax.paths import by_path
from freezejax.schedules import FreezeSchedule

FULL, NOTHING = "full", "nothing"
PAPER_EFFICIENCY = {"attn_c_proj": (35.4, 5.2)}  # percent of the gain, with so many percent of the parameters


def make_study(config: ConfigDict, vocab_size: int, base: Base) -> Study:
    """Everything trained, nothing, and each type of matrix alone."""
    model, train, start = base.model(config, vocab_size), config.train.to_dict(), base.start()
    amplitudes.check(config, model)
    kinds = dict.fromkeys(bases.short(k)[1] for k in bases.kernels(models.build(**model).abstract_params()))
    only = {kind: rf"blocks/\d+/{kind.replace('_', '[/_]')}/kernel" for kind in kinds}
    rules = {FULL: [(".*", True)], NOTHING: [(".*", False)]}
    rules |= {f"only_{kind}": [(pattern, True), (".*", False)] for kind, pattern in only.items()}
    variants = [Variant(name, model, train, FreezeSchedule([(0, rule)]), start=start) for name, rule in rules.items()]
    contrasts = [Contrast(v.name, NOTHING, "what training this type alone gains") for v in variants[2:]]
    told = functools.partial(findings, sizes=_shares(model, only))
    return Study("amplitude", variants, contrasts, files=False, sweep=config.sweep, findings=told)


def _shares(model: Mapping[str, Any], only: Mapping[str, str]) -> dict[str, float]:
    """Share of each type in all parameters, percent."""
    sizes = {path: leaf.size for path, leaf in by_path(models.build(**model).abstract_params()).items()}
    total = sum(sizes.values())
    of_kind = {k: sum(n for path, n in sizes.items() if re.fullmatch(pattern, path)) for k, pattern in only.items()}
    return {f"only_{kind}": 100 * size / total for kind, size in of_kind.items()}


def gains(found: Mapping[str, Any]) -> dict[str, Interval]:
    """Of what everything gains, what each type of matrix alone does, percent; empty where everything gains nothing."""
    loss = _losses(found)
    if not {FULL, NOTHING} <= loss.keys():
        return {}
    full, nothing = loss[FULL], loss[NOTHING]
    if not _seeds(loss) or any(nothing[seed] <= full[seed] for seed in _seeds(loss)):
        return {}
    shares = {
        name: [100 * (nothing[s] - own[s]) / (nothing[s] - full[s]) for s in _seeds(loss) if s in own]
        for name, own in loss.items()
        if name.startswith("only_")
    }
    return {name.removeprefix("only_"): interval(each) for name, each in shares.items() if each}


def _losses(found: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    field = f"val_{found['figures'][0]['name']}"
    return {row["name"]: {run["seed"]: run[field] for run in row["runs"]} for row in found["rows"]}


def _seeds(loss: Mapping[str, Mapping[int, float]]) -> list[int]:
    return [seed for seed in loss[FULL] if seed in loss[NOTHING]]


def findings(found: Mapping[str, Any], sizes: Mapping[str, float]) -> list[str]:
    """What each type gains of what everything gains, seed by seed; nothing where everything gains nothing."""

    def told(kind: str, gain: Interval) -> str:
        text = f"{kind} {with_ci(*gain, 1)} % with {sizes[f'only_{kind}']:.1f} % of the parameters"
        if kind in PAPER_EFFICIENCY:
            gained, of_parameters = PAPER_EFFICIENCY[kind]
            text += f" (paper 62: {gained} % with {of_parameters} %: {same_figure(gain, gained)})"
        return text

    if not (of_kind := gains(found)):
        return []
    loss = _losses(found)
    ends = " to ".join(f"{np.mean([loss[name][seed] for seed in _seeds(loss)]):.4f}" for name in (NOTHING, FULL))
    return [
        f"Of what full fine-tuning gains ({ends}), one type of matrix alone gains: "
        f"{'; '.join(told(kind, gain) for kind, gain in of_kind.items())}."
    ]


def claims(found: Mapping[str, Any], measured: amplitudes.OfBase) -> Iterator[Claim]:
    """The paper's figures, ours beside each."""
    text, of_kind = found["data"]["source"], gains(found)
    yield from amplitudes.claims(measured, text)
    for kind, (gained, of_parameters) in PAPER_EFFICIENCY.items():
        if kind in of_kind:
            what = f"gained by {kind} alone, {of_parameters} % of the parameters, of what everything gains"
            of = f"only_{kind} (amplitude, {text})"
            yield claimed.of_figure(amplitudes.SOURCE, what, gained, of_kind[kind], of, digits=1, unit=" %")


def main() -> None:
    """Makes the base if need be, runs every variant, and writes the tables of its amplitudes."""
    base = bases.of_flags(make_study)
    if (workdir := study.main(functools.partial(make_study, base=base), tokenizer=base.tokenizer)) is None:
        return
    measured = amplitudes.of_base(base, flags.FLAGS.config)
    write_atomically(workdir / amplitudes.FILE, amplitudes.as_markdown(measured))
    found = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
    if bases.as_in_papers(found["rows"][0]["model"]):
        claimed.write(workdir / claimed.FILE, claims(found, measured))
    print(f"The amplitudes: {workdir / amplitudes.FILE}")


if __name__ == "__main__":
    cli.define_study_flags("experiments/configs/amplitude.py:tiny")
    cli.run(main)
