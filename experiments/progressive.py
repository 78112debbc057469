"""Progressive freezing (main seed, PR 1301, sections 3 and 6) with the controls the paper lacks.

    python -m experiments.progressive --config=experiments/configs/progressive.py:tiny --workdir=DIR

This file says what is compared, as data. experiments/engine/study.py runs it; freezejax/training/loop.py trains.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.engine import cli, matching, study
from experiments.engine.results import packing
from experiments.engine.variants import Contrast, Paper, Study, Variant
from freezejax.errors import UserError
from freezejax.schedules import FreezeSchedule

# name, size, when gate+up freeze, extra: the initial scale of gate+up and dropout are matched or not.
# Trained weights start from N(0, 0.02) and weights frozen at random from N(0, 1/sqrt(in)), as in the paper;
# "same_scale" starts the former from the latter. (parameter_golf has one scale: there it changes nothing.)
_ROWS: list[tuple[str, str, str, set[str]]] = [
    ("baseline", "small", "never", set()),
    ("baseline_same_scale", "small", "never", {"same_scale"}),
    ("baseline_dropout", "small", "never", {"dropout"}),
    ("selective_small", "small", "start", {"same_scale"}),
    ("progressive_small", "small", "later", set()),
    ("trained_medium", "medium", "never", set()),
    ("trained_medium_same_scale", "medium", "never", {"same_scale"}),
    ("trained_medium_dropout", "medium", "never", {"dropout"}),
    ("trained_medium_dropout_same_scale", "medium", "never", {"dropout", "same_scale"}),
    ("trained_at_selective_bytes", "medium", "never", {"bytes"}),
    ("trained_at_selective_bytes_same_scale", "medium", "never", {"bytes", "same_scale"}),
    ("selective_medium", "medium", "start", {"same_scale"}),
    ("selective_medium_dropout", "medium", "start", {"same_scale", "dropout"}),
    ("progressive_medium", "medium", "later", set()),
    ("progressive_medium_same_scale", "medium", "later", {"same_scale"}),
    ("progressive_medium_rate_restart", "medium", "later", {"restart_schedule"}),
    ("progressive_medium_full_restart", "medium", "later", {"restart_schedule", "restart_optimizer"}),
    ("progressive_medium_dropout", "medium", "later", {"dropout"}),
    ("trained_large", "large", "never", set()),
    ("trained_large_same_scale", "large", "never", {"same_scale"}),
    ("selective_large", "large", "start", {"same_scale"}),
    ("progressive_large", "large", "later", set()),
]
# Weights that were trained are stored, frozen or not: the model of the same bytes is the same model never frozen.
_SAME_BYTES = {"trained_medium": "progressive_medium", "trained_large": "progressive_large"}

# corpus -> the paper's loss and its difference to the baseline in percent.
_SOURCE = "PR 1301, section 3"
_PAPER = {
    "fineweb": {
        "selective_medium": (4.1767, -0.9),
        "progressive_medium": (4.1189, -2.2),
        "progressive_large": (3.8370, -8.9),
    },
    "gutenberg": {"selective_medium": (1.2757, -1.5), "progressive_medium": (1.3049, +0.7)},
}


def make_study(config: ConfigDict, vocab_size: int) -> Study:
    """The study of a config, for a tokenizer of `vocab_size`; refuses a freeze pattern or point that cannot be."""
    models = {size: _model(config, vocab_size, size) for size in config.sizes}
    matching.check_pattern("config.freeze.pattern", config.freeze.pattern, models["small"])
    variants = [_variant(config, models[row[1]], row) for row in _ROWS]
    return Study("progressive", variants, contrasts())


def _model(config: ConfigDict, vocab_size: int, size: str) -> dict[str, Any]:
    model = {**config.model, **config.sizes[size], "vocab_size": config.model.vocab_size or vocab_size}
    if model["family"] == "parameter_golf":
        heads = model["num_heads"]
        model["num_kv_heads"] = heads if heads % 2 else heads // 2  # the baseline's 4 of 8
    return model


def _variant(config: ConfigDict, model: dict[str, Any], row: tuple[str, str, str, set[str]]) -> Variant:
    (name, _, freezes, extra), model = row, {**model}
    if "dropout" in extra:
        model["dropout"] = config.freeze.dropout
    if "same_scale" in extra and model["family"] == "geglu":
        model["mlp_in_init"] = "fan_in"
    seeded = matching.with_maps(model, matching.random_map(config.freeze.pattern))
    if "bytes" in extra:
        codec = packing(config)["codec"]
        model = matching.match_bytes(model, matching.stored_bytes(seeded, codec), codec)
    restart = {field: field in extra for field in ("restart_schedule", "restart_optimizer")}
    return Variant(
        name=name,
        model=seeded if freezes == "start" else model,
        train={**config.train.to_dict(), **restart},
        schedule=freeze_schedule(config, freezes),
        same_bytes_as="selective_medium" if "bytes" in extra else _SAME_BYTES.get(name, ""),
        papers=[
            Paper(corpus, _SOURCE, *table[name], f"{table[name][1]:+.1f}% against the small baseline ({corpus})")
            for corpus, table in _PAPER.items()
            if name in table
        ],
    )


def freeze_schedule(config: ConfigDict, freezes: str) -> FreezeSchedule:
    """Freeze schedule by word: "never", "start" (random maps, no weight to freeze) or "later" (`config.freeze.at`)."""
    if freezes != "later":
        return matching.ALL_TRAIN
    at = float(config.freeze.at)
    if not (0 < at < 1 or (at >= 2 and at.is_integer())):
        raise UserError(
            f"config.freeze.at={config.freeze.at}: expected a fraction of the run in (0, 1) or a step from 2 on; "
            "the selective variants freeze from step 0"
        )
    frozen = [(config.freeze.pattern, False), (".*", True)]
    return FreezeSchedule([(0, [(".*", True)]), (at if at < 1 else int(at), frozen)])


def contrasts() -> list[Contrast]:
    """The paired comparisons: the paper's own, then the controls it lacks."""
    papers = []
    for corpus, table in _PAPER.items():
        ours, other = (table[name][0] for name in ("progressive_medium", "selective_medium"))
        delta = 100.0 * (ours - other) / other
        papers.append(Paper(corpus, _SOURCE, ours, delta, f"{delta:+.1f}% against random-init freezing ({corpus})"))
    script = "... and the optimizer, as a script of the paper does?"
    questions = [
        ("selective_small", "baseline", "does freezing at random beat training, as the paper compares it?"),
        ("selective_small", "baseline_same_scale", "... and from the same initial scale?"),
        ("baseline_same_scale", "baseline", "what does the initial scale alone do?"),
        ("progressive_small", "baseline", "does freezing later cost anything at the small size?"),
        ("selective_medium", "trained_medium_same_scale", "random freezing at the same size and scale"),
        ("selective_medium", "trained_at_selective_bytes", "random freezing at the same stored bytes"),
        ("selective_medium", "trained_at_selective_bytes_same_scale", "... and from the same initial scale"),
        ("progressive_medium", "trained_medium", "freezing later at the same size, and so the same stored bytes"),
        ("progressive_medium_same_scale", "trained_medium_same_scale", "... from the larger initial scale"),
        ("progressive_medium_same_scale", "selective_medium", "trained against random frozen weights, same scale"),
        ("progressive_medium_rate_restart", "progressive_medium", "what does restarting the learning rate do?"),
        ("progressive_medium_full_restart", "progressive_medium", script),
        ("progressive_medium_dropout", "trained_medium_dropout", "freezing later, dropout on both sides"),
        ("selective_medium_dropout", "trained_medium_dropout_same_scale", "random freezing, dropout on both sides"),
        ("progressive_medium_dropout", "baseline_dropout", "the paper's row with dropout on both sides"),
        ("selective_large", "trained_large_same_scale", "random freezing at the large size and same scale"),
        ("progressive_large", "trained_large", "freezing later at the large size"),
    ]
    first = Contrast("progressive_medium", "selective_medium", "does freezing later beat random freezing?", papers)
    return [first, *(Contrast(*question) for question in questions)]


if __name__ == "__main__":
    cli.define_study_flags("experiments/configs/progressive.py:tiny")
    cli.run(lambda: study.main(make_study))
