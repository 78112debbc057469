"""Adapters over random maps: every kind, a sweep of ranks, and the submissions that used them, at our sizes.

    python -m experiments.adapters --config=experiments/configs/adapters.py:tiny --workdir=DIR

Rows named `pr_NUMBER` are the submissions of Parameter Golf, their ranks scaled to our width; LottaLoRA is
arXiv 2604.08749. Models with everything frozen, and narrow ones of their bytes, train at a rate of their own, see the
config. Not here: maps that are drawn anew at every step, under which LottaLoRA's beta goes to zero.
This file says what is compared, as data. experiments/engine/study.py runs it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.engine import cli, matching, study
from experiments.engine.results import packing
from experiments.engine.variants import Contrast, Paper, Study, Variant
from experiments.report.statistics import NO_EFFECT_PCT
from freezejax.errors import UserError
from freezejax.weights import betas_of

Rule = Mapping[str, Any]  # an entry of a model's `weights` without its pattern


class _Row(NamedTuple):
    """One variant: which kernels are random maps, and what stands over them; or the same maps, trained."""

    name: str
    place: str = ""  # "" = none
    over: Sequence[Rule] = ()  # from the inside out
    distribution: str = "normal"
    trained: bool = False  # the kernels only start as these maps: a control
    bytes_of: str = ""  # narrower or wider, until its file is as large as that of this row: a control
    extra: Collection[str] = ()  # seeds: runs with every base seed; ema, twice; one_head: has its control


# Over normal maps everywhere; those with a rank have the rank of the usual LoRA, VeRA that of the width.
_KINDS = ("dora", "randlora", "vera", "vera_scalars", "gain", "rank_stabilised", "scalar_lora")
_DISTRIBUTIONS = ("rademacher", "uniform", "hadamard", "orthogonal_qr")
_FLATTER = 0.025  # codes of LoRA take so much more than those of Gaussian weights: Adam makes its numbers more alike
_FULL_RANK, _RANK_2 = "pr_1549", "pr_1870"  # rows of the sweep: its largest rank, and rank 2


def make_study(config: ConfigDict, vocab_size: int) -> Study:
    """The study of a config, for a tokenizer of `vocab_size`; refuses a family or rank that cannot be."""
    model = matching.geglu_models(config, vocab_size)["small"]
    if config.lora.rank not in config.lora.ranks or 2 not in config.lora.ranks:
        raise UserError(
            f"config.lora.ranks={config.lora.ranks}: config.lora.rank={config.lora.rank} and 2 are swept too"
        )
    rows = {row.name: row for row in _rows(config)}
    variants = [_variant(config, model, rows, row) for row in rows.values()]
    return Study("adapters", variants, _contrasts(config), measures={"beta": betas_of}, findings=findings)


def _rows(config: ConfigDict) -> Iterator[_Row]:
    compared = [*_references(), *_swept(config), *_kinds(config), *_submissions(config)]
    yield from compared
    for row in compared:
        if row.name in _same_bytes(config):
            yield row._replace(name=_control(row.name), over=(), trained=True, bytes_of=row.name)


def _references() -> list[_Row]:
    return [
        _Row("baseline"),
        _Row("trained_same_maps", "all", trained=True),
        _Row("trained_mlp_same_maps", "mlp", trained=True),
        _Row("trained_attention_same_maps", "attention", (), "rademacher", trained=True),
        _Row("frozen", "all"),
    ]


def _swept(config: ConfigDict) -> list[_Row]:
    extra = {_RANK_2: {"seeds", "one_head"}}
    names = {_sweep_name(config, rank): rank for rank in config.lora.ranks}
    return [_Row(name, "all", [_lora(rank)], extra=extra.get(name, ())) for name, rank in names.items()]


def _kinds(config: ConfigDict) -> list[_Row]:
    usual, width = _lora(config.lora.rank), config.sizes.small.model_dim
    over: dict[str, list[Rule]] = {
        "dora": [{**usual, "kind": "dora"}],
        "randlora": [{**usual, "kind": "randlora"}],
        "vera": [{"kind": "vera", "rank": width}],
        "vera_scalars": [{"kind": "vera", "rank": width, "scalars": True}],
        "gain": [{"kind": "gain"}],
        "rank_stabilised": [{**usual, "rank_stabilised": True}],
        "scalar_lora": [{"kind": "scalar"}, usual],
    }
    distributions = [_Row(f"lora_{name}", "all", [usual], name) for name in _DISTRIBUTIONS]
    return [*(_Row(name, "all", over[name]) for name in _KINDS), *distributions]


def _submissions(config: ConfigDict) -> list[_Row]:
    width, gain = config.sizes.small.model_dim, [{"kind": "gain"}]
    of_512 = lambda rank: _lora(max(2, round(rank * width / 512)))  # noqa: E731 - they are 512 wide
    return [
        _Row(f"{_FULL_RANK}_ema", "all", [_lora(config.lora.ranks[-1])], extra={"ema"}),
        _Row("pr_2058", "mlp", [of_512(160)]),
        _Row("pr_974", "attention", [of_512(128)], "rademacher"),
        _Row("pr_1113", "all", [of_512(32)], "orthogonal_qr", extra={"one_head"}),
        _Row("pr_1195", "all", [{"kind": "scale_shift"}], "orthogonal_qr", extra={"one_head"}),
        _Row("pr_1228", "first_up", gain, "orthogonal_qr"),
        *(_Row(f"pr_1228_{name}", "first_up", gain, name) for name in ("normal", "rademacher")),
        _Row("pr_1753", "all", [{"kind": "supermask", "keep": 0.5}], extra={"one_head"}),
        _Row("pr_1710", "mlp_in", extra={"twice"}),
    ]


def _lora(rank: int) -> Rule:
    return {"kind": "lora", "rank": rank}


def _sweep_name(config: ConfigDict, rank: int) -> str:
    return {2: _RANK_2, config.lora.ranks[-1]: _FULL_RANK}.get(rank, f"lora_r{rank}")


def _control(name: str) -> str:
    return f"trained_at_{name}_bytes"


def places(num_layers: int) -> dict[str, str]:
    """Where maps may stand: place -> pattern of kernel paths.

    >>> places(12)["first_up"]
    'blocks/(0|1|2|3|4)/mlp/up/kernel'
    """
    first = "|".join(map(str, range(max(1, round(num_layers * 5 / 12)))))  # PR 1228: layers 0 to 4 of 12
    return {
        "all": r"blocks/\d+/(attn|mlp)/[^/]+/kernel",
        "mlp": r"blocks/\d+/mlp/[^/]+/kernel",
        "attention": r"blocks/\d+/attn/[^/]+/kernel",
        "mlp_in": r"blocks/\d+/mlp/(gate|up)/kernel",
        "first_up": f"blocks/({first})/mlp/up/kernel",
    }


def _variant(config: ConfigDict, model: dict[str, Any], rows: Mapping[str, _Row], row: _Row) -> Variant:
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


def _model(config: ConfigDict, model: dict[str, Any], rows: Mapping[str, _Row], row: _Row) -> dict[str, Any]:
    if row.bytes_of:
        target = _file_bytes(config, model, rows, rows[row.bytes_of])
        # Few bytes are left beside a table of embeddings as narrow as several heads need it.
        heads = {"num_heads": 1} if "one_head" in row.extra else {}
        return matching.fit_file(matching.with_maps({**model, **heads}, *_rules(model, row)), target, **packing(config))
    return _run_twice(matching.with_maps(model, *_rules(model, row)), "twice" in row.extra)


def _file_bytes(config: ConfigDict, model: dict[str, Any], rows: Mapping[str, _Row], row: _Row) -> int:
    whole, maps = (
        matching.file_bytes(_model(config, model, rows, each), **packing(config))
        for each in (row, row._replace(over=()))
    )
    is_lora = any(rule["kind"] == "lora" for rule in row.over)
    return whole + round(_FLATTER * (whole - maps)) if is_lora else whole


def _rules(model: Mapping[str, Any], row: _Row) -> list[Rule]:
    if not row.place:
        return []
    pattern = places(model["num_layers"])[row.place]
    maps = [matching.random_map(pattern, row.distribution, trained=row.trained)]
    if keep := next((rule["keep"] for rule in row.over if rule["kind"] == "supermask"), None):
        # What the mask leaves of a map has the variance 1 / inputs; down has other inputs than the rest.
        width = model["model_dim"]
        inputs = {r".*/down/kernel": round(model["mlp_mult"] * width), pattern: width}
        maps = [{**maps[0], "pattern": p, "scale": (keep * n) ** -0.5} for p, n in inputs.items()]
    return [*maps, *({"pattern": pattern, **rule} for rule in row.over)]


def _run_twice(model: dict[str, Any], twice: bool) -> dict[str, Any]:
    """The model whose middle blocks run a second time: three of eleven, as in PR 1710."""
    if not twice:
        return model
    layers = model["num_layers"]
    count = max(1, round(layers * 3 / 11))
    start = (layers - count) // 2
    again = [
        {"pattern": rf"blocks/{start + count + i}/(attn|mlp)/[^/]+/kernel", "kind": "shared", "block": start + i}
        for i in range(count)
    ]
    return matching.with_maps({**model, "num_layers": layers + count}, *again)


_FULL = Paper(
    "fineweb", "PR 1549", None, 0.0, "no effect: 1.3220 bits per byte at rank 304 against 1.321 of full rank (fineweb)"
)
_DIAGONAL = Paper(
    "fineweb", "PRs 1195, 1113", None, +60.6, "2.2017 bits per byte against 1.3705 at rank 32 (fineweb, two scripts)"
)
_AT_BUDGET = {  # against trained models of the same budget of bytes
    "pr_2058": Paper("fineweb", "PR 2058", None, -0.5, "1.2182 bits per byte against the baseline's 1.2244 (fineweb)"),
    "pr_1228": Paper("fineweb", "PR 1228", None, +2.7, "1.1528 bits per byte against 1.1228 of its stack (fineweb)"),
    "pr_1753": Paper("fineweb", "PR 1753", None, +5.5, "1.2917 bits per byte against the baseline's 1.2244 (fineweb)"),
}
_BYTES = {  # row with a control of the same bytes -> what is asked of the two
    _RANK_2: "LoRA of rank 2 everywhere against trained at the same bytes",
    "pr_2058": "MLP frozen with LoRA, attention learned, against trained at the same bytes",
    "pr_974": "attention frozen with LoRA, MLP learned, against trained at the same bytes",
    "pr_1113": "everything orthogonal with LoRA against trained at the same bytes",
    "pr_1195": "everything orthogonal with a scale and a shift against trained at the same bytes",
    "pr_1228": "up of the first layers orthogonal with a gain against trained at the same bytes",
    "pr_1753": "a mask over maps, one bit a weight, against trained at the same bytes",
    "pr_1710": "gate and up frozen, middle blocks run twice, against trained at the same bytes",
}


def _same_bytes(config: ConfigDict) -> dict[str, str]:
    return {_sweep_name(config, config.lora.rank): "LoRA everywhere against trained at the same bytes", **_BYTES}


def _contrasts(config: ConfigDict) -> list[Contrast]:
    usual = _sweep_name(config, config.lora.rank)
    sweep = [_sweep_name(config, rank) for rank in config.lora.ranks]
    return [
        Contrast("trained_same_maps", "baseline", "what do the maps do as initial values alone?"),
        Contrast("frozen", "trained_same_maps", "frozen everywhere without adapters: what is there to make up for?"),
        Contrast(usual, "trained_same_maps", "how near does LoRA come? (LottaLoRA: 96 to 100 % of full training)"),
        *(Contrast(name, _FULL_RANK, "this rank against the largest") for name in sweep[:-1]),
        *(Contrast(name, "trained_same_maps", "... and against trained") for name in sweep[:-1] if name != usual),
        Contrast(_FULL_RANK, "trained_same_maps", "is the largest rank as good as training?", [_FULL]),
        Contrast(f"{_FULL_RANK}_ema", _FULL_RANK, "an average of adapters that start at zero, its decay warmed up"),
        *(Contrast(kind, usual, "this kind of adapter against LoRA, over the same maps") for kind in _KINDS),
        *(Contrast(f"lora_{name}", usual, f"{name} maps against normal ones, under LoRA") for name in _DISTRIBUTIONS),
        Contrast("pr_1195", "pr_1113", "a scale and a shift against LoRA, everything orthogonal", [_DIAGONAL]),
        Contrast("pr_2058", "trained_mlp_same_maps", "MLP frozen with LoRA against the same maps trained"),
        Contrast("pr_974", "trained_attention_same_maps", "attention frozen with LoRA against the same maps trained"),
        Contrast("pr_1228", "pr_1228_normal", "orthogonal against normal, with a gain (PR 1228: orthogonal is better)"),
        Contrast("pr_1228", "pr_1228_rademacher", "... against Rademacher"),
        *(
            Contrast(name, _control(name), question, [_AT_BUDGET[name]] if name in _AT_BUDGET else [])
            for name, question in _same_bytes(config).items()
        ),
    ]


def findings(found: Mapping[str, Any]) -> list[str]:
    """What the summary says of LottaLoRA's rank and beta, and of the two spreads of PR 1870: by rule, in sentences."""
    rows = {row["name"]: row for row in found["rows"]}
    sentences = [_saturates(found, reference) for reference in (_FULL_RANK, "trained_same_maps")]
    if "scalar_lora" in rows:
        betas = [beta for runs in rows["scalar_lora"]["measured"]["beta"].values() for beta in runs]
        positive = sum(beta > 0 for beta in betas)
        sentences.append(
            f"Beta, the learned scale of the maps under LoRA, goes from 1 to {min(betas):.3f} ... {max(betas):.3f}: "
            f"positive in {positive} of {len(betas)} kernels and runs (LottaLoRA: it stays positive)."
        )
    base, training = (rows.get(_RANK_2, {}).get(f"{axis}_seed_sd") for axis in ("base", "training"))
    if base and training:
        sentences.append(
            f"{_RANK_2}: over base seeds bits per byte spread by {base:.4f}, over training seeds by {training:.4f}: "
            f"{base / training:.1f} times as much (PR 1870: 0.030 and 0.005)."
        )
    return [sentence for sentence in sentences if sentence]


def _saturates(found: Mapping[str, Any], reference: str) -> str:
    ranks = [
        (contrast["effect_pct"] + contrast["effect_pct_ci95"], next(reversed(row["model"]["weights"]))["rank"])
        for row in found["rows"]
        for contrast in found["contrasts"]
        if (row["name"], reference) == (contrast["variant"], contrast["reference"])
        and (row["name"].startswith("lora_r") or row["name"] in (_RANK_2, _FULL_RANK))
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
