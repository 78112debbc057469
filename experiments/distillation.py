"""Distillation and freezing (main seed, PR 1301, sections 5 and 6) with the controls the paper lacks.

    python -m experiments.distillation --config=experiments/configs/distillation.py:tiny --workdir=DIR

This file says what is compared, as data. experiments/engine/study.py runs it; freezejax/training/loop.py trains.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.engine import cli, matching, study
from experiments.engine.results import packing
from experiments.engine.tasks import Minimize, language_modelling, weights_of
from experiments.engine.teachers import Distilling, FromFile, Teacher, distilled, run_of
from experiments.engine.variants import Contrast, Paper, Study, Variant
from experiments.progressive import freeze_schedule
from freezejax.data import Corpus
from freezejax.errors import UserError
from freezejax.schedules import FreezeSchedule

FILE = "the file"  # as a teacher


class _Row(NamedTuple):
    """One variant: what gate+up are, for how long it trains, which run teaches it and which one it goes on from.

    `gate_up`: "" from N(0, 0.02), "seeded" random maps, "same_maps" trained from these, "bytes" the same in a model
    made smaller until it stores the bytes of the seeded one, "frozen" as the run before left them, "later" from
    `config.freeze.at` on.
    """

    name: str
    size: str
    steps: str = "all"  # of config.train.steps, see `_steps`
    gate_up: str = ""
    teacher: str = ""  # a variant
    start: str = ""  # a variant
    options: Mapping[str, Any] = {}  # of `Distilling`, where they are not those of the config
    same_bytes_as: str = ""


# "The teacher's steps count": a student that trains for the second half has a teacher that trained for the first.
_ROWS = [
    _Row("baseline", "small"),
    _Row("teacher_small", "small", "first_half"),
    _Row("student_distilled", "medium", "second_half", "seeded", "teacher_small"),
    _Row("student_text", "medium", "second_half", "seeded"),
    _Row("selective_medium", "medium", "all", "seeded"),
    _Row("student_trained_distilled", "medium", "second_half", "same_maps", "teacher_small"),
    _Row("student_trained_text", "medium", "second_half", "same_maps"),
    _Row("trained_medium_same_maps", "medium", "all", "same_maps"),
    _Row("trained_at_student_bytes", "medium", "all", "bytes", same_bytes_as="student_distilled"),
    _Row("distilled_at_student_bytes", "medium", "second_half", "bytes", "teacher_small", "", {}, "student_distilled"),
    _Row("teacher_medium", "medium", "first_half"),
    _Row("student_of_its_architecture", "medium", "second_half", "seeded", "teacher_medium"),
    # Section 6 in three runs, a third of the steps each: train, learn from one's own snapshot, go on frozen.
    _Row("chain_first", "medium", "third"),
    _Row("chain_distilled_second", "medium", "third", "", "chain_first", "chain_first"),
    _Row("chain_distilled", "medium", "last_third", "frozen", "", "chain_distilled_second"),
    _Row("chain_text_second", "medium", "third", "", "", "chain_first"),
    _Row("chain_text", "medium", "last_third", "frozen", "", "chain_text_second"),
    _Row("chain_never_frozen", "medium", "last_third", "", "", "chain_distilled_second", {}, "chain_distilled"),
    _Row("progressive_medium", "medium", "all", "later"),
    _Row("trained_medium", "medium", same_bytes_as="chain_distilled"),
    # What distillation is known for: a larger, better teacher.
    _Row("teacher_large", "large"),
    _Row("small_of_large", "small", "all", "", "teacher_large"),
    _Row("baseline_twice", "small", "twice"),
    _Row("small_of_large_share_1", "small", "all", "", "teacher_large", "", {"share": 1.0}),
    _Row("small_of_large_temperature_1", "small", "all", "", "teacher_large", "", {"temperature": 1.0}),
    _Row("small_of_large_temperature_4", "small", "all", "", "teacher_large", "", {"temperature": 4.0}),
]
_OF_FILE = [
    _Row("small_of_file", "small", "all", "", FILE),
    _Row("selective_medium_of_file", "medium", "all", "seeded", FILE),
]

# The paper's loss and its difference to the baseline in percent; all are of its books.
_PAPER = {
    "student_distilled": ("PR 1301, section 5", 1.3451, +3.8),
    "chain_distilled": ("PR 1301, section 6", 1.3013, +0.4),
    "selective_medium": ("PR 1301, section 3", 1.2757, -1.5),
    "progressive_medium": ("PR 1301, section 3", 1.3049, +0.7),
}


def make_study(config: ConfigDict, vocab_size: int) -> Study:
    """The study of a config, for a tokenizer of `vocab_size`; refuses a teacher or pattern that cannot be."""
    models = matching.geglu_models(config, vocab_size)
    if config.train.steps < 3:
        raise UserError(f"config.train.steps={config.train.steps}: expected 3 or more, for a chain of three runs")
    matching.check_pattern("config.freeze.pattern", config.freeze.pattern, models["small"])
    options = config.distillation.to_dict()
    path, rows, file = options.pop("teacher"), _ROWS, None
    if path:
        rows, file = [*_ROWS, *_OF_FILE], FromFile(path, "config.distillation.teacher")
        file.check_vocabulary(models["small"]["vocab_size"])
    how, variants = Distilling(**options), dict[str, Variant]()
    for row in rows:
        variants[row.name] = _variant(config, models[row.size], row, how, variants, file)
    names = variants.keys()
    asked = [contrast for contrast in contrasts() if {contrast.variant, contrast.reference} <= names]
    return Study("distillation", [*variants.values()], asked, check=functools.partial(_check, how, file))


def _check(how: Distilling, file: FromFile | None, corpus: Corpus) -> None:
    how.check_processes()
    if file is not None:
        file.check_tokenizer(corpus)


def _variant(
    config: ConfigDict,
    model: dict[str, Any],
    row: _Row,
    how: Distilling,
    earlier: Mapping[str, Variant],
    file: FromFile | None,
) -> Variant:
    minimize: Minimize = language_modelling
    teacher, taught_by = _teacher(row, earlier, file)
    if teacher is not None:
        minimize = distilled(teacher, dataclasses.replace(how, **row.options))
    return Variant(
        name=row.name,
        model=_with_gate_up(config, model, row.gate_up),
        train={**config.train.to_dict(), "steps": _steps(config.train.steps)[row.steps]},
        schedule=_schedule(config, row.gate_up),
        same_bytes_as=row.same_bytes_as,
        papers=papers_of(row.name),
        minimize=minimize,
        start=weights_of(row.start) if row.start else None,
        needs=[name for name in dict.fromkeys([row.start, row.teacher]) if name in earlier],
        teacher=taught_by,
    )


def _teacher(
    row: _Row, earlier: Mapping[str, Variant], file: FromFile | None
) -> tuple[Teacher | None, Mapping[str, Any] | None]:
    """The teacher of a row and its model; none where text alone teaches."""
    if row.teacher == FILE and file is not None:
        return file, file.model
    return (run_of(row.teacher), earlier[row.teacher].model) if row.teacher else (None, None)


def _steps(steps: int) -> dict[str, int]:
    """Steps of a run by word: the parts of a chain add up to those of the config.

    >>> _steps(400)["third"], _steps(400)["last_third"]
    (133, 134)
    """
    half, third = steps // 2, steps // 3
    halves = {"first_half": half, "second_half": steps - half}
    return {"all": steps, "twice": 2 * steps, **halves, "third": third, "last_third": steps - 2 * third}


def _with_gate_up(config: ConfigDict, model: dict[str, Any], word: str) -> dict[str, Any]:
    seeded, trained = (
        matching.with_maps(model, matching.random_map(config.freeze.pattern, trained=trained))
        for trained in (False, True)
    )
    if word == "bytes":
        codec = packing(config)["codec"]
        return matching.match_bytes(trained, matching.stored_bytes(seeded, codec), codec)
    return {"seeded": seeded, "same_maps": trained}.get(word, model)


def _schedule(config: ConfigDict, word: str) -> FreezeSchedule:
    if word == "frozen":
        return FreezeSchedule([(0, [(config.freeze.pattern, False), (".*", True)])])
    return freeze_schedule(config, word)


def papers_of(name: str) -> list[Paper]:
    """The paper's figure for a row, if it has one."""
    if name not in _PAPER:
        return []
    source, value, delta = _PAPER[name]
    return [Paper("gutenberg", source, value, delta, f"{delta:+.1f}% against the small baseline (gutenberg)")]


# variant, reference, question
_QUESTIONS = [
    ("student_distilled", "baseline", "a small teacher, then a larger frozen student, as the paper compares it"),
    ("student_distilled", "student_text", "what does the teacher give a frozen student in the same steps?"),
    ("student_distilled", "selective_medium", "... and against spending the teacher's steps on the student?"),
    ("student_distilled", "student_trained_distilled", "frozen against trained, same maps, same teacher"),
    ("student_distilled", "trained_at_student_bytes", "... against trained on text at the same stored bytes and steps"),
    ("student_distilled", "distilled_at_student_bytes", "... and at the same stored bytes, same teacher"),
    ("student_trained_distilled", "student_trained_text", "what does the teacher give a student that trains whole?"),
    ("student_trained_distilled", "trained_medium_same_maps", "... against the teacher's steps on the student"),
    ("student_of_its_architecture", "student_distilled", "a teacher of the student's size against a small one"),
    ("student_of_its_architecture", "student_text", "what does a teacher of the student's size give?"),
    ("teacher_medium", "teacher_small", "how much better is the teacher of the student's size?"),
    ("chain_distilled", "baseline", "train, self-distill, freeze, as the paper compares it"),
    ("chain_distilled", "chain_text", "what does self-distillation give, in the same chain of restarts?"),
    ("chain_distilled_second", "chain_text_second", "... before the freeze?"),
    ("chain_distilled", "progressive_medium", "against one run that freezes at a third"),
    ("chain_text", "progressive_medium", "what do a later freeze and the restarts do alone?"),
    ("chain_distilled", "chain_never_frozen", "what does the freeze of the last third cost?"),
    ("chain_distilled", "trained_medium", "the chain against one run that trains whole: same size, so the same bytes"),
    ("chain_distilled", "selective_medium", "the chain against random maps of the same size"),
    ("small_of_large", "baseline", "what does a larger teacher give in the same steps?"),
    ("small_of_large", "baseline_twice", "... against the teacher's steps on the student, cheaper than the teacher's?"),
    ("teacher_large", "baseline", "how much better is the large teacher?"),
    ("small_of_large_share_1", "small_of_large", "the teacher alone against teacher and text"),
    ("small_of_large_temperature_1", "small_of_large", "temperature 1 against the config's"),
    ("small_of_large_temperature_4", "small_of_large", "temperature 4 against the config's"),
    ("small_of_file", "baseline", "what does the teacher of the file give a small model?"),
    ("selective_medium_of_file", "selective_medium", "... and a larger one with frozen gate+up?"),
]


def contrasts() -> list[Contrast]:
    """The paired comparisons; the paper's own beside those that its figures make."""
    found = {}
    for pair in (("chain_distilled", "progressive_medium"), ("student_distilled", "selective_medium")):
        (source, value, _), (_, other, _) = (_PAPER[name] for name in pair)
        delta = 100.0 * (value - other) / other
        claim = f"{delta:+.1f}% against {pair[1]} (gutenberg)"
        found[pair] = [Paper("gutenberg", source, value, delta, claim)]
    return [Contrast(*question, found.get(question[:2], [])) for question in _QUESTIONS]


if __name__ == "__main__":
    cli.define_study_flags("experiments/configs/distillation.py:tiny")
    cli.run(lambda: study.main(make_study))
