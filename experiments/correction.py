"""A low-rank correction beside a frozen MLP (main seed, PR 1301, section 4) with the controls the paper lacks.

    python -m experiments.correction --config=experiments/configs/correction.py:tiny --workdir=DIR

Rows are named by the paper's ranks, at its widths of 192 and 384; ours are the same share of our widths. The paper's
text has the linear form, `mlp(x) + a b x`, its script `mlp(x) + b gelu(a x)`: the figures are of the script. Its MLP
there has no gate; ours has. experiments/engine/study.py runs what this file says.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.engine import cli, matching, study
from experiments.engine.results import packing
from experiments.engine.variants import Contrast, Paper, Study, Variant

MLP = r"blocks/\d+/mlp/(gate|up|down)/kernel"
_WIDTHS = {"small": 192, "large": 384}  # of the paper, that its ranks are of


class _Row(NamedTuple):
    """One variant: what its MLPs are, and what stands beside them."""

    name: str
    mlp: str = ""  # frozen: maps; same_maps: starts as these and trains; none: one hidden unit; "": usual weights
    beside: str = ""  # "gelu" or "linear": a correction; "lora": as many numbers, matrix by matrix
    rank: int = 0  # the paper's
    size: str = "small"
    bytes_of: str = ""  # narrower, until its file is as large as that of this row
    base_seeds: bool = False


_RANKS = (32, 64, 128)
_ROWS = [
    _Row("baseline"),
    _Row("trained_same_maps", "same_maps"),
    _Row("frozen_mlp", "frozen"),
    *(_Row(f"gelu_r{rank}", "frozen", "gelu", rank, base_seeds=rank == 64) for rank in _RANKS),
    *(_Row(f"linear_r{rank}", "frozen", "linear", rank) for rank in _RANKS),
    _Row("gelu_r64_alone", "none", "gelu", 64),
    _Row("lora_as_r64", "frozen", "lora", 64),
    *(_Row(f"trained_at_r{rank}_bytes", "same_maps", bytes_of=f"gelu_r{rank}") for rank in _RANKS),
    _Row("large_gelu_r64", "frozen", "gelu", 64, "large"),
    _Row("large_trained_same_maps", "same_maps", size="large"),
    _Row("trained_at_large_r64_bytes", "same_maps", size="large", bytes_of="large_gelu_r64"),
]

_SOURCE = "PR 1301, section 4"
_PAPER = {  # loss and its difference to the small baseline in percent, on its four books
    "gelu_r32": (1.4310, +10.0),
    "gelu_r64": (1.4075, +8.2),
    "gelu_r128": (1.3823, +6.2),
    "large_gelu_r64": (1.3041, +0.23),
}

# variant, reference, question
_QUESTIONS = [
    ("trained_same_maps", "baseline", "what do the maps do as initial values alone?"),
    ("frozen_mlp", "trained_same_maps", "MLP frozen, no correction: what is there to make up for?"),
    *(("gelu_r64", name, question) for name, question in [
        ("frozen_mlp", "what does the correction make up for?"),
        ("gelu_r64_alone", "does the frozen MLP add anything to the correction?"),
        ("lora_as_r64", "one correction beside the MLP against LoRA on its matrices, as many numbers"),
    ]),
    *((f"gelu_r{rank}", "trained_same_maps", f"rank {rank} against the same maps trained") for rank in _RANKS),
    *((f"linear_r{rank}", f"gelu_r{rank}", f"the text's form against the script's, rank {rank}") for rank in _RANKS),
    *(
        (f"{form}_r{rank}", f"trained_at_r{rank}_bytes", f"{form}, rank {rank}, against trained at the same bytes")
        for form in ("gelu", "linear")
        for rank in _RANKS
    ),
    ("large_gelu_r64", "gelu_r64", "the larger model against the small one, both corrected"),
    ("large_gelu_r64", "large_trained_same_maps", "the larger model against the same maps trained"),
    ("large_gelu_r64", "trained_at_large_r64_bytes", "the larger model against trained at the same bytes"),
    ("large_trained_same_maps", "baseline", "what does the larger size do by itself?"),
]  # fmt: skip


def make_study(config: ConfigDict, vocab_size: int) -> Study:
    """The study of a config, for a tokenizer of `vocab_size`; refuses a family without gate, up and down."""
    models = matching.geglu_models(config, vocab_size)
    variants = [_variant(config, models, row) for row in _ROWS]
    return Study("correction", variants, [Contrast(*question) for question in _QUESTIONS])


def _variant(config: ConfigDict, models: Mapping[str, dict[str, Any]], row: _Row) -> Variant:
    model = _model(models[row.size], row)
    if row.bytes_of:
        (other,) = (other for other in _ROWS if other.name == row.bytes_of)
        target = matching.file_bytes(_model(models[other.size], other), **packing(config))
        model = matching.fit_file(model, target, **packing(config))
    value, delta = _PAPER.get(row.name, (None, 0.0))
    claim = f"{delta:+.2g}% against the small baseline (gutenberg)"
    return Variant(
        name=row.name,
        model=model,
        train=config.train.to_dict(),
        schedule=matching.ALL_TRAIN,
        base_seeds=row.base_seeds,
        same_bytes_as=row.bytes_of,
        papers=[Paper("gutenberg", _SOURCE, value, delta, claim)] if row.name in _PAPER else [],
    )


def _model(model: dict[str, Any], row: _Row) -> dict[str, Any]:
    width, rank = model["model_dim"], rank_of(row.rank, model["model_dim"], row.size)
    if row.mlp in ("frozen", "same_maps"):
        model = matching.with_maps(model, matching.random_map(MLP, trained=row.mlp == "same_maps"))
    if row.mlp == "none":
        model = {**model, "mlp_mult": 1 / width}
    if row.beside == "lora":
        sides = 3 * (width + round(model["mlp_mult"] * width))  # of gate, up and down; the correction's are 2 * width
        model = matching.with_maps(model, {"pattern": MLP, "kind": "lora", "rank": round(2 * width * rank / sides)})
    elif row.beside:
        model = {**model, "correction": row.beside, "correction_rank": rank}
    return model


def rank_of(papers: int, width: int, size: str) -> int:
    """The rank that is the same share of our width as the paper's is of its own.

    >>> rank_of(64, 96, "small"), rank_of(64, 192, "small")
    (32, 64)
    """
    return round(papers * width / _WIDTHS[size])


if __name__ == "__main__":
    cli.define_study_flags("experiments/configs/correction.py:tiny")
    cli.run(lambda: study.main(make_study))
