"""Ensembles (main seed, PR 1301, section 7), as its text says it and as its script did it, with the controls.

    python -m experiments.ensemble --config=experiments/configs/ensemble.py:tiny --workdir=DIR

The text: two models of half the depth against one, the mean of their logits. The script: a trained model and one of the
same size whose gate and up are random maps. An ensemble is one more model, whose weights are those that the runs of its
members ended with. It trains nothing, or with "weighted" how much each member counts.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.engine import cli, matching, study
from experiments.engine.fields import check_range
from experiments.engine.results import packing
from experiments.engine.tasks import Start
from experiments.engine.variants import Contrast, Paper, Study, Variant
from freezejax.models import ensemble
from freezejax.schedules import FreezeSchedule


class _One(NamedTuple):
    """A model that trains: gate and up are random maps ("seeded"), start as them and train ("same_maps"), or neither.

    `bytes_of` is the ensemble whose stored bytes the model is made to have; with "both_steps" it trains for the steps
    of both members together, and so on as many tokens.
    """

    name: str
    size: str
    extra: Collection[str] = ()  # seeded, same_maps, both_steps, other_seed
    bytes_of: str = ""


class _Several(NamedTuple):
    """An ensemble of earlier variants."""

    name: str
    members: tuple[str, ...]
    combine: str = "logits"
    weighted: bool = False


_SINGLES = [
    _One("baseline", "single"),
    _One("half", "half"),
    _One("half_other", "half", {"other_seed"}),
    _One("seeded", "single", {"seeded"}),
    _One("baseline_same_maps", "single", {"same_maps"}),
]
_HALVES, _MIXED = ("half", "half_other"), ("baseline", "seeded")
_ENSEMBLES = [
    *(
        row
        for name, members in (("two_halves", _HALVES), ("trained_and_frozen", _MIXED))
        for row in (
            _Several(name, members),
            _Several(f"{name}_probabilities", members, "probabilities"),
            _Several(f"{name}_weighted", members, weighted=True),
        )
    ),
    _Several("trained_and_trained", ("baseline", "baseline_same_maps")),
]
# Of each ensemble: one model of its bytes for the steps of a member, about the FLOPs of both members; the same for the
# steps of both, on as many tokens; and one of a member's size for the steps of both, at the FLOPs of both.
_CONTROLS = [
    _One("one_at_halves_bytes", "single", bytes_of="two_halves"),
    _One("one_at_halves_bytes_both_steps", "single", {"both_steps"}, "two_halves"),
    _One("half_both_steps", "half", {"both_steps"}),
    _One("one_at_mixed_bytes", "large", {"same_maps"}, "trained_and_frozen"),
    _One("one_at_mixed_bytes_both_steps", "large", {"same_maps", "both_steps"}, "trained_and_frozen"),
    _One("same_maps_both_steps", "single", {"same_maps", "both_steps"}),
]
_BASE_SEEDS = ("seeded", "trained_and_frozen")  # run with every base seed
_OTHER_SEED = 1000  # added to the training seed of the second half

_SINGLE_BPC, _ENSEMBLE_BPC = 1.9797, 1.7660
_DELTA = 100.0 * (_ENSEMBLE_BPC - _SINGLE_BPC) / _SINGLE_BPC
_CLAIM = f"{_DELTA:+.1f}% against the 6-layer model, {_ENSEMBLE_BPC:.4f} bits per character (gutenberg)"
_PAPER = {"two_halves": [_CLAIM], "trained_and_frozen": [f"{_CLAIM}; its script trains these in place of two halves"]}


def make_study(config: ConfigDict, vocab_size: int) -> Study:
    """The study of a config, for a tokenizer of `vocab_size`; refuses a family or pattern that cannot be."""
    check_range(config, "mix.steps", 1)
    check_range(config, "mix.learning_rate", 0)
    sized = matching.geglu_models(config, vocab_size)
    matching.check_pattern("config.freeze.pattern", config.freeze.pattern, sized["single"])
    found: dict[str, Variant] = {}
    rows: list[_One | _Several] = [*_SINGLES, *_ENSEMBLES, *_CONTROLS]
    for row in rows:
        found[row.name] = _one(config, sized, row, found) if isinstance(row, _One) else _several(config, row, found)
    return Study("ensemble", list(found.values()), [Contrast(*question) for question in _QUESTIONS])


def _one(config: ConfigDict, sized: Mapping[str, Any], row: _One, earlier: Mapping[str, Variant]) -> Variant:
    model, train, codec = sized[row.size], config.train.to_dict(), packing(config)["codec"]
    if kinds := {"seeded", "same_maps"} & set(row.extra):
        model = matching.with_maps(model, matching.random_map(config.freeze.pattern, trained="same_maps" in kinds))
    if row.bytes_of:
        model = matching.match_bytes(model, matching.stored_bytes(earlier[row.bytes_of].model, codec), codec)
    if "other_seed" in row.extra:
        train["seed"] = _OTHER_SEED
    if "both_steps" in row.extra:
        train["steps"] *= 2
    return Variant(row.name, model, train, matching.ALL_TRAIN, row.name in _BASE_SEEDS, row.bytes_of)


def _several(config: ConfigDict, row: _Several, earlier: Mapping[str, Variant]) -> Variant:
    members = [dict(earlier[name].model) for name in row.members]
    model = {"family": "ensemble", "members": members, "combine": row.combine}
    train = {**config.train.to_dict(), "steps": 1}
    if row.weighted:
        rates = dict.fromkeys(("learning_rate", "adam_learning_rate"), config.mix.learning_rate)
        optimizer = {**train["optimizer"], **rates, "weight_decay": 0.0}
        train |= {"steps": config.mix.steps, "optimizer": optimizer}
    return Variant(
        name=row.name,
        model=model,
        train=train,
        schedule=FreezeSchedule([(0, [("mix", row.weighted), (".*", False)])]),
        base_seeds=row.name in _BASE_SEEDS,
        papers=[Paper("gutenberg", "PR 1301, section 7", None, _DELTA, claim) for claim in _PAPER.get(row.name, [])],
        start=weights_of_all(row.members),
        needs=row.members,
    )


def weights_of_all(members: Collection[str]) -> Start:
    """The weights that the runs of an ensemble's members ended with, side by side."""
    return lambda task: ensemble.join([task.trained(name).params for name in members])


# variant, reference, question
_QUESTIONS = [
    ("two_halves", "baseline", "do two small models beat a large one, as the paper compares them?"),
    ("two_halves", "half", "what does the second small model add to the first?"),
    ("two_halves", "one_at_halves_bytes", "against one model of the same stored bytes, steps and FLOPs"),
    ("two_halves", "one_at_halves_bytes_both_steps", "... that sees as many tokens as both together"),
    ("two_halves", "half_both_steps", "against one of the two at the FLOPs of both"),
    ("two_halves_probabilities", "two_halves", "the mean of probabilities against that of logits"),
    ("two_halves_weighted", "two_halves", "learned weights against equal ones"),
    ("trained_and_frozen", "baseline", "does a frozen second model help, as a script of the paper does it?"),
    ("trained_and_frozen", "seeded", "what does the trained model add to the frozen one?"),
    ("trained_and_frozen", "trained_and_trained", "frozen against trained as the second model, same maps"),
    (
        "trained_and_frozen",
        "one_at_mixed_bytes",
        "against one model of the same stored bytes and steps, same maps",
    ),
    ("trained_and_frozen", "one_at_mixed_bytes_both_steps", "... that sees as many tokens as both together"),
    ("trained_and_frozen", "same_maps_both_steps", "against one of that size for the steps of both, same maps"),
    ("trained_and_frozen_probabilities", "trained_and_frozen", "the mean of probabilities against that of logits"),
    ("trained_and_frozen_weighted", "trained_and_frozen", "learned weights against equal ones"),
    ("baseline_same_maps", "baseline", "what do the maps do as initial values alone?"),
]


if __name__ == "__main__":
    cli.define_study_flags("experiments/configs/ensemble.py:tiny")
    cli.run(lambda: study.main(make_study))
