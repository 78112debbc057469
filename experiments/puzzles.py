"""The puzzles that `experiments.freeze_except` trains and scores on: drawn as a config says, or a user's files."""

import functools
import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from experiments.engine.fields import check_range
from experiments.report.forgetting import ACCURACY, Items
from freezejax.data import Corpus
from freezejax.data.puzzles import FAMILIES, Puzzle, draw, read_jsonl
from freezejax.errors import UserError
from freezejax.paths import check_known
from freezejax.training.answers import SHOWN, encoded

FILES = ("train", "target", "test")  # of a folder of the user's, with .jsonl


class Puzzles(NamedTuple):
    """What a study trains and scores on."""

    train: list[Puzzle]  # of the base
    tune: list[Puzzle]  # of the target
    test: list[Puzzle]  # of all families
    target: list[str]  # families


@functools.lru_cache(maxsize=2)
def _drawn(told: str) -> Puzzles:
    c = ConfigDict(json.loads(told))
    target = [name.strip() for name in c.target.split(",")]
    if c.path:
        train, tune, test = (read_jsonl(Path(c.path) / f"{name}.jsonl") for name in FILES)
        for name in sorted({puzzle.family for puzzle in tune}):
            known = {puzzle.family for puzzle in test}
            check_known(name, known, f"{c.path}/target.jsonl: test.jsonl has no family {name!r}")
        return Puzzles(train, tune, test, sorted({puzzle.family for puzzle in tune}))
    for name in target:
        check_known(name, FAMILIES, f"config.puzzles.target: there is no family {name!r}")
    others, how = [name for name in FAMILIES if name not in target], {"level": c.level, "examples": c.examples}
    share = -(-c.tune // len(target))
    tune = [puzzle for name in target for puzzle in draw(name, share, **how)][: c.tune]
    taken = {puzzle.prompt for puzzle in tune}
    return Puzzles(
        [puzzle for name in others for puzzle in draw(name, c.train, **how)]
        + [puzzle for name in target for puzzle in draw(name, c.seen, seed=1, but=taken, **how)],
        tune,
        [puzzle for name in FAMILIES for puzzle in draw(name, c.test, split="test", **how)],
        target,
    )


def puzzles_of(config: ConfigDict) -> Puzzles:
    """The puzzles of a config, drawn once."""
    return _drawn(config.puzzles.to_json())


def mixed(puzzles: Puzzles, share: float, seed: int) -> list[Puzzle]:
    """The target's puzzles, and others until they are this share of all."""
    return [*puzzles.tune, *random.Random(seed).sample(_others(puzzles), _mixed_in(puzzles, share))]


def _others(puzzles: Puzzles) -> list[Puzzle]:
    return [puzzle for puzzle in puzzles.train if puzzle.family not in puzzles.target]


def _mixed_in(puzzles: Puzzles, share: float) -> int:
    return round(len(puzzles.tune) * share / (1 - share))


def digest(config: ConfigDict) -> str:
    """Of the files of the user's puzzles: other puzzles are another study."""
    puzzles_of(config)  # refuses files that cannot be read
    found = hashlib.sha256()
    for name in FILES:
        found.update(f"{name} ".encode() + (Path(config.puzzles.path) / f"{name}.jsonl").read_bytes())
    return found.hexdigest()


def check(config: ConfigDict, corpus: Corpus, learns: bool) -> None:
    """Refuses puzzles that are too long, too few, or both learned and tested, before a file is written."""
    check_range(config, "puzzles.power", 0)
    found = puzzles_of(config)
    for name, chosen, least in (
        ("train", found.train, config.train.batch_size if learns else 0),
        ("target", found.tune, config.tune.batch_size),
        ("mix in (config.mixed)", _others(found), _mixed_in(found, config.mixed)),
        ("test", found.test, 1),
    ):
        if len(chosen) < least:
            raise UserError(f"config.puzzles: {len(chosen)} puzzles to {name}, where {least} are needed")
    if config.mixed and not _mixed_in(found, config.mixed):
        raise UserError(f"config.mixed={config.mixed}: of {len(found.tune)} puzzles of the target that is none")
    if {puzzle.family for puzzle in found.test} <= set(found.target):
        raise UserError("config.puzzles: all families of the test puzzles are the target's: there is nothing to forget")
    tested = {puzzle.prompt for puzzle in found.test}
    for name, learned in (("train", found.train), ("target", found.tune)):
        if both := [puzzle.prompt for puzzle in learned if puzzle.prompt in tested]:
            raise UserError(f"config.puzzles: {len(both)} of test are of {name}, too; the first is {both[0][:60]!r}")
    for chosen, shown in ((found.train, learns and config.puzzles.shown), (found.tune, False), (found.test, False)):
        encoded(chosen, corpus.tokenizer, config.train.seq_len, shown=shown)


def items_of(puzzles: Sequence[Puzzle], target: Sequence[str]) -> Items:
    """Puzzles as items; drawn ones that ask the same with the same answer, whatever they show, are one question."""
    asked = [p.prompt.splitlines()[-1] if p.prompt.endswith(SHOWN) else p.prompt for p in puzzles]
    questions = [f"{p.family}: {question}{p.answer}" for p, question in zip(puzzles, asked, strict=True)]
    return Items([puzzle.family for puzzle in puzzles], target, ACCURACY, questions)
