"""Which matrices of a pretrained model must be fine-tuned? Each frozen alone, in groups, layer by layer (paper 64).

    python -m experiments.redundancy --config=experiments/configs/redundancy.py:tiny --workdir=DIR

Every row is the base fine-tuned with something frozen, against the same run with everything trained. What a group costs
beyond the sum of its members, each frozen alone, is the interaction: the paper's paradox as a number.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments import bases, diagnostics
from experiments.bases import Base, short
from experiments.diagnostics import Diagnostics, name_of
from experiments.engine import cli, study
from experiments.engine.fields import check_range
from experiments.engine.variants import ANY, Contrast, Paper, Study, Variant
from experiments.report import heatmap
from experiments.report.statistics import Interval
from freezejax import models
from freezejax.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.paths import nearest
from freezejax.schedules import FreezeSchedule

FULL = "full"
PARTS = ("matrices", "layers", "types", "cumulative", "bottom", "top", "only", "long")
_PAPER = "paper 64 (progressive layer freezing)"
# Variant -> percent against full fine-tuning, and what the paper says of it. Its model has 8 layers.
_CLAIMS = {
    **{
        f"L{layer}_attn_c_proj": (pct, "one c_proj frozen costs next to nothing")
        for layer, pct in {0: 0.60, 1: -0.02, 3: 0.89, 4: -0.20, 6: -0.32, 7: -0.29}.items()
    },
    "all_attn_c_proj": (5.3, "all c_proj frozen cost more than one"),
    "attention_matrices": (15.2, "c_proj and c_attn"),
    "attention": (15.9, "all attention"),
    "matrices": (79.3, "attention and MLP"),
    "blocks": (81.2, "everything but embeddings"),
    "everything": (165.8, "everything (the paper: but lm_head, which is tied)"),
    "bottom_1": (10.6, "a whole layer exceeds 5 %"),
    "bottom_2": (23.8, "two layers"),
    "bottom_4": (40.4, "four layers"),
    "bottom_8": (79.9, "eight layers"),
}
_SMALL_PCT = 1.0  # "next to nothing": the paper's own word for anything below


def make_study(config: ConfigDict, vocab_size: int, base: Base, measured: Diagnostics | None = None) -> Study:
    """The variants that `config.parts` names, and for every group its interaction.

    `measured` is what was measured of the matrices of the base; None: nothing yet.
    """
    for field in ("longer", "diagnostics.batches"):
        check_range(config, field, 1)
    wanted = [part.strip() for part in config.parts.split(",")]
    for part in wanted:
        if part not in PARTS:
            raise UserError(f"config.parts: there is no part {part!r}; {nearest(part, PARTS)}")
    model, start, train = base.model(config, vocab_size), base.start(), config.train.to_dict()
    groups = {name: patterns for part in wanted for name, patterns in _groups(part, model)}

    def variant(name: str, frozen: Sequence[str], steps: int = train["steps"]) -> Variant:
        rules = [*((pattern, False) for pattern in frozen), (".*", True)]
        papers = []
        if name in _CLAIMS and bases.as_in_papers(model):
            pct, claim = _CLAIMS[name]
            small = abs(pct) < _SMALL_PCT
            papers = [Paper(ANY, _PAPER, None, 0.0 if small else pct, f"{claim} ({pct:+.2f} %)")]
        schedule = FreezeSchedule([(0, rules)])
        measures = diagnostics.after(base, config) if name == FULL else {}
        longer = {**train, "steps": steps}
        return Variant(name, model, longer, schedule, start=start, papers=papers, measures=measures)

    variants = [variant(FULL, []), *(variant(name, frozen) for name, frozen in groups.items())]
    contrasts = list(_interactions(groups))
    if "long" in wanted:
        longer = config.longer * train["steps"]
        variants.append(variant(f"{FULL}_long", [], longer))
        for name, frozen in _groups("cumulative", model):
            variants.append(variant(f"{name}_long", frozen, longer))
            question = f"is what {name} costs only slower? After {config.longer:g} times the steps"
            contrasts.append(Contrast(f"{name}_long", f"{FULL}_long", question))
    told = functools.partial(findings, measured=measured or {})
    return Study("redundancy", variants, contrasts, files=False, sweep=config.sweep, findings=told)


def _groups(part: str, model: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Names and patterns of what each variant of a part freezes."""
    matrices = bases.kernels(models.build(**model).abstract_params())
    layers = sorted({short(kernel)[0] for kernel in matrices})
    types = list(dict.fromkeys(short(kernel)[1] for kernel in matrices))
    of_type = {name: [re.escape(k) for k in matrices if short(k)[1] == name] for name in types}
    block = {layer: f"blocks/{layer}/.*" for layer in layers}
    if part == "matrices":
        yield from ((name_of(kernel), [re.escape(kernel)]) for kernel in matrices)
    elif part == "layers":
        yield from ((f"layer_{layer}", [block[layer]]) for layer in layers)
    elif part == "types":
        yield from ((f"all_{name}", of_type[name]) for name in types)
    elif part == "cumulative":
        attention = [pattern for name in types if name.startswith("attn") for pattern in of_type[name]]
        yield "attention_matrices", attention
        yield "attention", [r"blocks/\d+/(attn|ln1)/.*"]
        yield "matrices", [*map(re.escape, matrices)]
        yield "blocks", [r"blocks/.*", r"ln_f/.*"]
        yield "everything", [".*"]
    elif part == "bottom":
        yield from ((f"bottom_{n}", [block[layer] for layer in layers[:n]]) for n in range(1, len(layers) + 1))
    elif part == "top":
        yield from ((f"top_{n}", [block[layer] for layer in layers[-n:]]) for n in range(2, len(layers)))
    elif part == "only":
        yield from ((f"only_{name}", [rf"(?!blocks/\d+/{name.replace('_', '[/_]')}/kernel).*"]) for name in types)


def _interactions(groups: dict[str, list[str]]) -> Iterator[Contrast]:
    """For each group whose members are frozen alone, too: what it costs beyond their sum."""
    alone = {patterns[0]: name for name, patterns in reversed(groups.items()) if len(patterns) == 1}
    for name, patterns in groups.items():
        members = [alone.get(pattern, "") for pattern in patterns]
        if len(members) > 1 and all(members):
            yield Contrast(name, FULL, f"does {name} cost more than its {len(members)} members alone?", less=members)


def findings(found: Mapping[str, Any], measured: Diagnostics) -> list[str]:
    """The paradox as a number for every group, and whether a measure of the base tells the costs: by rule."""
    rows = {row["name"]: row for row in found["rows"]}
    sentences = []
    for item in found["contrasts"]:
        if not item.get("less") or item["effect_pct_ci95"] is None:
            continue
        together, alone = rows[item["variant"]], [rows[name]["delta_pct"] for name in item["less"]]
        effect = Interval(item["effect_pct"], item["effect_pct_ci95"])
        more = "more than" if effect.low > 0 else "less than" if effect.high < 0 else "as much as"
        sentences.append(
            f"{item['variant']}: frozen together {together['delta_pct']:+.2f} %, each alone {sum(alone):+.2f} % in sum "
            f"(the largest {max(alone):+.2f} %): interaction {effect.mean:+.2f} +- {effect.ci95:.2f} %, together they "
            f"cost {more} the sum."
        )
    later = rows[FULL].get("measured")
    return [*sentences, *diagnostics.predictions(found, measured, later)]


def main() -> None:
    """Makes the base if need be, measures it, then runs every variant and draws what each matrix costs."""
    base = bases.of_flags(make_study)
    given = flags.FLAGS
    measured = {} if given.dry_run else diagnostics.of_base(base, given.config, Path(given.workdir).absolute())
    made = functools.partial(make_study, base=base, measured=measured)
    if (workdir := study.main(made, tokenizer=base.tokenizer)) is not None:
        found = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
        if later := next(row for row in found["rows"] if row["name"] == FULL).get("measured"):
            diagnostics.write_after(workdir, later)
        if drawn := heatmap.picture(found["rows"]):
            write_atomically(workdir / "matrices.svg", drawn)
            print(f"What each matrix costs alone: {workdir / 'matrices.svg'}")


if __name__ == "__main__":
    cli.define_study_flags("experiments/configs/redundancy.py:tiny")
    cli.run(main)
