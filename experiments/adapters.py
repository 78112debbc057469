"""Adapters over random maps: every kind, a sweep of ranks, and the submissions that used them, at our sizes.

    python -m experiments.adapters --config=experiments/configs/adapters.py:tiny --workdir=DIR

Rows named `pr_NUMBER` are the submissions of Parameter Golf, their ranks scaled to our width; LottaLoRA is
arXiv 2604.08749. Models with everything frozen, and narrow ones of their bytes, train at a rate of their own, see the
config. Not here: maps that are drawn anew at every step, under which LottaLoRA's beta goes to zero.
What is compared is data, here and in experiments/adapter_rows.py. experiments/engine/study.py runs it.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.adapter_rows import (
    DISTRIBUTIONS,
    FULL_RANK,
    KINDS,
    MLP_LORA,
    OF_LORAS_BYTES,
    RANK_2,
    Row,
    control,
    rows_of,
    rules,
    run_twice,
    same_bytes,
    sweep_name,
)
from experiments.engine import cli, matching, study
from experiments.engine.results import packing
from experiments.engine.variants import ANY, Contrast, Paper, Study, Variant
from experiments.report.statistics import NO_EFFECT_PCT
from freezejax.errors import UserError
from freezejax.weights import betas_of

_FLATTER = 0.025  # codes of LoRA take so much more than those of Gaussian weights: Adam makes its numbers more alike


def make_study(config: ConfigDict, vocab_size: int) -> Study:
    """The study of a config, for a tokenizer of `vocab_size`; refuses a family or rank that cannot be."""
    model = matching.geglu_models(config, vocab_size)["small"]
    if config.lora.rank not in config.lora.ranks or 2 not in config.lora.ranks:
        raise UserError(
            f"config.lora.ranks={config.lora.ranks}: config.lora.rank={config.lora.rank} and 2 are swept too"
        )
    rows = {row.name: row for row in rows_of(config)}
    variants = [_variant(config, model, rows, row) for row in rows.values()]
    return Study("adapters", variants, _contrasts(config), measures={"beta": betas_of}, findings=findings)


def _variant(config: ConfigDict, model: dict[str, Any], rows: Mapping[str, Row], row: Row) -> Variant:
    train = config.train.to_dict()
    if row.place == "all":
        rate = config.rates.narrow if row.bytes_of else 1.0 if row.trained else config.rates.frozen
        train["optimizer"]["learning_rate"] *= rate
    if "ema" in row.extra:
        train["ema_decay"] = config.ema_decay
    return Variant(
        name=row.name,
        model=_model(config, model, rows, row),
        train=train,
        schedule=matching.ALL_TRAIN,
        base_seeds="seeds" in row.extra and not row.trained,
        same_bytes_as=row.bytes_of,
    )


def _model(config: ConfigDict, model: dict[str, Any], rows: Mapping[str, Row], row: Row) -> dict[str, Any]:
    if row.bytes_of:
        target = _file_bytes(config, model, rows, rows[row.bytes_of])
        # Few bytes are left beside a table of embeddings as narrow as several heads need it.
        heads = {"num_heads": 1} if "one_head" in row.extra else {}
        return matching.fit_file(matching.with_maps({**model, **heads}, *rules(model, row)), target, **packing(config))
    return run_twice(matching.with_maps(model, *rules(model, row)), "twice" in row.extra)


def _file_bytes(config: ConfigDict, model: dict[str, Any], rows: Mapping[str, Row], row: Row) -> int:
    whole, maps = (
        matching.file_bytes(_model(config, model, rows, each), **packing(config))
        for each in (row, row._replace(over=()))
    )
    is_lora = any(rule["kind"] == "lora" for rule in row.over)
    return whole + round(_FLATTER * (whole - maps)) if is_lora else whole


_FULL = Paper(
    "fineweb", "PR 1549", None, 0.0, "no effect: 1.3220 bits per byte at rank 304 against 1.321 of full rank (fineweb)"
)
_DIAGONAL = Paper(
    "fineweb", "PRs 1195, 1113", None, +60.6, "2.2017 bits per byte against 1.3705 at rank 32 (fineweb, two scripts)"
)
_ANY_DISTRIBUTION = Paper(ANY, "LottaLoRA", None, 0.0, "no effect: maps of any distribution work as well under LoRA")
_AT_BUDGET = {  # against trained models of the same budget of bytes
    "pr_2058": Paper("fineweb", "PR 2058", None, -0.5, "1.2182 bits per byte against the baseline's 1.2244 (fineweb)"),
    "pr_1228": Paper("fineweb", "PR 1228", None, +2.7, "1.1528 bits per byte against 1.1228 of its stack (fineweb)"),
    "pr_1753": Paper("fineweb", "PR 1753", None, +5.5, "1.2917 bits per byte against the baseline's 1.2244 (fineweb)"),
}


def _contrasts(config: ConfigDict) -> list[Contrast]:
    usual = sweep_name(config, config.lora.rank)
    sweep = [sweep_name(config, rank) for rank in config.lora.ranks]
    return [
        Contrast("trained_same_maps", "baseline", "what do the maps do as initial values alone?"),
        Contrast("frozen", "trained_same_maps", "frozen everywhere without adapters: what is there to make up for?"),
        Contrast(usual, "trained_same_maps", "how near does LoRA come? (LottaLoRA: 96 to 100 % of full training)"),
        *(Contrast(name, FULL_RANK, "this rank against the largest") for name in sweep[:-1]),
        *(Contrast(name, "trained_same_maps", "... and against trained") for name in sweep[:-1] if name != usual),
        Contrast(FULL_RANK, "trained_same_maps", "is the largest rank as good as training?", [_FULL]),
        Contrast(f"{FULL_RANK}_ema", FULL_RANK, "an average of adapters that start at zero, its decay warmed up"),
        *(Contrast(kind, usual, "this kind of adapter against LoRA, over the same maps") for kind in KINDS),
        *(
            Contrast(f"lora_{name}", usual, f"{name} maps against normal ones, under LoRA", [_ANY_DISTRIBUTION])
            for name in DISTRIBUTIONS
        ),
        *(
            Contrast(name, control(usual), "the same bytes as LoRA's: against trained at them")
            for name in (*OF_LORAS_BYTES, *(f"lora_{name}" for name in DISTRIBUTIONS))
        ),
        Contrast("frozen_mlp", "trained_mlp_same_maps", "MLP frozen without adapters against the same maps trained"),
        Contrast(MLP_LORA, "trained_mlp_same_maps", "MLP frozen with the usual LoRA against the same maps trained"),
        *(Contrast(f"mlp_{kind}", MLP_LORA, "this kind of adapter of the MLP against LoRA of it") for kind in KINDS),
        Contrast("pr_1195", "pr_1113", "a scale and a shift against LoRA, everything orthogonal", [_DIAGONAL]),
        Contrast("pr_2058", "trained_mlp_same_maps", "MLP frozen with LoRA against the same maps trained"),
        Contrast("pr_974", "trained_attention_same_maps", "attention frozen with LoRA against the same maps trained"),
        Contrast("pr_1228", "pr_1228_normal", "orthogonal against normal, with a gain (PR 1228: orthogonal is better)"),
        Contrast("pr_1228", "pr_1228_rademacher", "... against Rademacher"),
        *(
            Contrast(name, control(name), question, [_AT_BUDGET[name]] if name in _AT_BUDGET else [])
            for name, question in same_bytes(config).items()
        ),
    ]


def findings(found: Mapping[str, Any]) -> list[str]:
    """What the summary says of LottaLoRA's rank and beta, and of the two spreads of PR 1870: by rule, in sentences."""
    rows = {row["name"]: row for row in found["rows"]}
    sentences = [_saturates(found, reference) for reference in (FULL_RANK, "trained_same_maps")]
    if "scalar_lora" in rows:
        betas = [beta for runs in rows["scalar_lora"]["measured"]["beta"].values() for beta in runs]
        positive = sum(beta > 0 for beta in betas)
        sentences.append(
            f"Beta, the learned scale of the maps under LoRA, goes from 1 to {min(betas):.3f} ... {max(betas):.3f}: "
            f"positive in {positive} of {len(betas)} kernels and runs (LottaLoRA: it stays positive)."
        )
    base, training = (rows.get(RANK_2, {}).get(f"{axis}_seed_sd") for axis in ("base", "training"))
    if base and training:
        sentences.append(
            f"{RANK_2}: over base seeds bits per byte spread by {base:.4f}, over training seeds by {training:.4f}: "
            f"{base / training:.1f} times as much (PR 1870: 0.030 and 0.005)."
        )
    return [sentence for sentence in sentences if sentence]


def _saturates(found: Mapping[str, Any], reference: str) -> str:
    ranks = [
        (contrast["effect_pct"] + contrast["effect_pct_ci95"], next(reversed(row["model"]["weights"]))["rank"])
        for row in found["rows"]
        for contrast in found["contrasts"]
        if (row["name"], reference) == (contrast["variant"], contrast["reference"])
        and (row["name"].startswith("lora_r") or row["name"] in (RANK_2, FULL_RANK))
        and contrast["effect_pct_ci95"] is not None
    ]
    if not ranks:
        return ""
    reached = [rank for high, rank in ranks if high <= NO_EFFECT_PCT]
    words = f"the smallest rank of which this holds is {min(reached)}" if reached else "of no rank does this hold"
    return f"The interval lies wholly below +{NO_EFFECT_PCT:g} % against {reference}: {words}."


if __name__ == "__main__":
    cli.define_study_flags("experiments/configs/adapters.py:tiny")
    cli.run(lambda: study.main(make_study))
