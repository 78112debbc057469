"""Selective freezing on random maps (main seed, PR 1301, section 2) with the controls the paper lacks.

    python -m experiments.selective --config=experiments/configs/selective.py:tiny --workdir=DIR

This file says what is compared, as data. experiments/engine/study.py runs it; freezejax/training/loop.py trains.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.engine import cli, matching, study
from experiments.engine.results import packing
from experiments.engine.variants import Contrast, Paper, Study, Variant


class _Row(NamedTuple):
    """One variant: which kernels are random maps ("seeded") or start as them and train ("same_maps")."""

    name: str
    size: str
    place: str = ""  # "" = none
    kind: str = ""
    extra: Collection[str] = ()  # main, dropout, lora, gain, bytes, step
    distribution: str = "normal"


# "main": runs with every base seed. "bytes" and "step" make the model smaller until it stores the bytes, or
# takes the FLOPs per step, of the same model with its maps seeded.
_PLACES_SMALL = ("down", "q", "k", "v", "out")
_HALVES = ("first_half", "second_half")
_DISTRIBUTIONS = ("rademacher", "uniform", "hadamard", "normal_f32", "orthogonal_qr")
_ROWS = [
    _Row("baseline", "small"),
    _Row("full_freeze_lora", "small", "all", "seeded", {"main", "lora"}),
    _Row("selective_small", "small", "gate_up", "seeded", {"main"}),
    _Row("selective_small_dropout", "small", "gate_up", "seeded", {"main", "dropout"}),
    _Row("selective_medium", "medium", "gate_up", "seeded", {"main"}),
    _Row("selective_large_dropout", "large", "gate_up", "seeded", {"main", "dropout"}),
    _Row("trained_large", "large"),
    _Row("baseline_same_maps", "small", "gate_up", "same_maps"),
    _Row("baseline_dropout", "small", extra={"dropout"}),
    _Row("baseline_dropout_same_maps", "small", "gate_up", "same_maps", {"dropout"}),
    _Row("trained_medium_same_maps", "medium", "gate_up", "same_maps"),
    _Row("trained_at_selective_bytes_same_maps", "medium", "gate_up", "same_maps", {"bytes"}),
    _Row("trained_at_selective_step_same_maps", "medium", "gate_up", "same_maps", {"step"}),
    _Row("selective_large", "large", "gate_up", "seeded"),
    _Row("trained_large_same_maps", "large", "gate_up", "same_maps"),
    _Row("trained_large_dropout_same_maps", "large", "gate_up", "same_maps", {"dropout"}),
    *(
        _Row(f"{name}_{place}", size, place, kind)
        for size, places in (("small", _PLACES_SMALL), ("medium", _HALVES))
        for place in places
        for name, kind in (("frozen", "seeded"), ("trained", "same_maps"))
    ),
    *(_Row(f"selective_small_{d}", "small", "gate_up", "seeded", distribution=d) for d in _DISTRIBUTIONS),
    _Row("selective_small_gain", "small", "gate_up", "seeded", {"gain"}),
]

# The paper's loss (where it has one), its difference in percent, and the variant that stands for its reference.
_SOURCE = "PR 1301, section 2"
_FROZEN_LARGE_CE, _TRAINED_LARGE_CE = 2.8803, 2.7295
_PAPER = {
    "full_freeze_lora": (None, +80.0, ""),
    "selective_small": (None, -2.1, ""),
    "selective_small_dropout": (3.4404, +5.8, "baseline_dropout"),
    "selective_medium": (3.1427, -3.4, "baseline_dropout"),
    "selective_large_dropout": (_FROZEN_LARGE_CE, -11.5, "baseline_dropout"),
    "trained_large": (_TRAINED_LARGE_CE, -16.1, "baseline_dropout"),
}
_FIRST_VERSION = "; its first version: CE 3.3838, -2.8% against the baseline without dropout"


def make_study(config: ConfigDict, vocab_size: int) -> Study:
    """The study of a config, for a tokenizer of `vocab_size`; refuses a family, pattern or codec that cannot be."""
    models = matching.geglu_models(config, vocab_size)
    matching.check_pattern("config.freeze.pattern", config.freeze.pattern, models["small"])
    return Study("selective", [_variant(config, models[row.size], row) for row in _ROWS], contrasts())


def papers_of(name: str) -> list[Paper]:
    """The paper's figure for a row, if it has one: all of them are of FineWeb."""
    if name not in _PAPER:
        return []
    value, delta, reference = _PAPER[name]
    claim = f"{delta:+.1f}% against the small baseline{' with dropout' * bool(reference)} (fineweb)"
    return [Paper("fineweb", _SOURCE, value, delta, claim + _FIRST_VERSION * (name == "selective_small"), reference)]


def _variant(config: ConfigDict, model: dict[str, Any], row: _Row) -> Variant:
    model = {**model}
    if "dropout" in row.extra:
        model["dropout"] = config.freeze.dropout
    if row.place in ("q", "k", "v"):
        model["separate_qkv"] = True
    if row.place:
        model = _with_maps(model, config, row)
    if "lora" in row.extra:
        lora = {"pattern": places(model["num_layers"])[row.place], "kind": "lora", **config.lora}
        model = matching.with_maps(model, lora)
    return Variant(
        name=row.name,
        model=model,
        train=config.train.to_dict(),
        schedule=matching.ALL_TRAIN,
        base_seeds="main" in row.extra,
        same_bytes_as="selective_medium" if "bytes" in row.extra else "",
        papers=papers_of(row.name),
    )


def _with_maps(model: dict[str, Any], config: ConfigDict, row: _Row) -> dict[str, Any]:
    pattern = {**places(model["num_layers"]), "gate_up": config.freeze.pattern}[row.place]
    gain = [{"pattern": pattern, "kind": "gain"}] if "gain" in row.extra else []
    seeded = matching.with_maps(model, matching.random_map(pattern, row.distribution), *gain)
    if row.kind == "seeded":
        return seeded
    trained = matching.with_maps(model, matching.random_map(pattern, row.distribution, trained=True))
    if "bytes" in row.extra:
        codec = packing(config)["codec"]
        return matching.match_bytes(trained, matching.stored_bytes(seeded, codec), codec)
    return matching.match_step(trained, matching.step_flops(seeded)) if "step" in row.extra else trained


def places(num_layers: int) -> dict[str, str]:
    """Where maps may stand beside gate and up: place -> pattern of kernel paths.

    >>> places(3)["first_half"]
    'blocks/(0)/(attn|mlp)/[^/]+/kernel'
    """
    half = num_layers // 2
    layers = {"all": range(num_layers), "first_half": range(half), "second_half": range(half, num_layers)}
    return {
        **{place: rf"blocks/\d+/attn/{place}/kernel" for place in ("q", "k", "v", "out")},
        "down": r"blocks/\d+/mlp/down/kernel",
        **{place: f"blocks/({'|'.join(map(str, some))})/(attn|mlp)/[^/]+/kernel" for place, some in layers.items()},
    }


# variant, reference, question
_AGAINST_ALL = "against all trained from N(0, 0.02)"
_QUESTIONS = [
    ("selective_small", "baseline", "does freezing gate+up at random beat training, as the paper compares it?"),
    ("selective_small", "baseline_same_maps", "... and against training from the same maps?"),
    ("baseline_same_maps", "baseline", "what do the maps do as initial values alone?"),
    ("full_freeze_lora", "baseline", "does LoRA make up for freezing everything?"),
    ("full_freeze_lora", "baseline_dropout", "... and with the paper's baseline, which has dropout"),
    ("full_freeze_lora", "selective_small", "everything frozen with LoRA against gate+up frozen"),
    ("selective_small_dropout", "baseline", "frozen with dropout against trained without"),
    ("selective_small_dropout", "baseline_dropout", "frozen, dropout on both sides, as the paper computes it"),
    ("selective_small_dropout", "baseline_dropout_same_maps", "... and from the same maps"),
    ("selective_medium", "baseline", "a larger frozen model against a smaller trained one"),
    ("selective_medium", "baseline_dropout", "... and with the paper's baseline, which has dropout"),
    ("selective_medium", "trained_medium_same_maps", "frozen at the same size, from the same maps"),
    ("selective_medium", "trained_at_selective_bytes_same_maps", "frozen against trained at the same stored bytes"),
    ("selective_medium", "trained_at_selective_step_same_maps", "frozen against trained at the same FLOPs per step"),
    ("selective_large_dropout", "baseline", "does bigger and frozen beat smaller and trained?"),
    ("selective_large_dropout", "baseline_dropout", "... and with dropout on both sides, as the paper computes it"),
    ("selective_large_dropout", "trained_large_dropout_same_maps", "frozen, large, dropout on both sides, same maps"),
    ("selective_large_dropout", "trained_large", "frozen against trained at the large size, as the paper has them"),
    ("selective_large", "trained_large", "... without dropout"),
    ("selective_large", "trained_large_same_maps", "... and from the same maps"),
    ("trained_large", "baseline_dropout", "a larger trained model against the paper's baseline"),
    *((f"frozen_{p}", f"trained_{p}", f"{p} frozen, same maps") for p in (*_PLACES_SMALL, *_HALVES)),
    *((f"frozen_{p}", "baseline", f"{p} frozen at 1/sqrt(in) {_AGAINST_ALL}") for p in _PLACES_SMALL),
    *((f"frozen_{p}", "trained_medium_same_maps", f"{p} frozen whole against gate+up's maps trained") for p in _HALVES),
    *((f"selective_small_{d}", "selective_small", f"{d} maps against normal ones") for d in _DISTRIBUTIONS),
    ("selective_small_gain", "selective_small", "a learned gain per feature against none"),
]


def contrasts() -> list[Contrast]:
    """The paired comparisons; the paper's figure beside those that it computes so."""
    found = {(name, paper.reference): [paper] for name in _PAPER for paper in papers_of(name)}
    delta = 100.0 * (_FROZEN_LARGE_CE - _TRAINED_LARGE_CE) / _TRAINED_LARGE_CE
    claim = f"{delta:+.1f}% against the large trained model (fineweb)"
    large = ("selective_large_dropout", "trained_large")
    found[large] = [Paper("fineweb", _SOURCE, _FROZEN_LARGE_CE, delta, claim)]
    return [Contrast(*question, found.get(question[:2], [])) for question in _QUESTIONS]


if __name__ == "__main__":
    cli.define_study_flags("experiments/configs/selective.py:tiny")
    cli.run(lambda: study.main(make_study))
