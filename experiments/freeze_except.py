"""Freeze everything but one type of module of a hybrid model and fine-tune it on one task: gain and decay.

    python -m experiments.freeze_except --config=experiments/configs/freeze_except.py:tiny --workdir=DIR

A base learns families of puzzles but the target; then each row fine-tunes one type of module on the target. What a row
forgets is read beside what it gains, how far its weights moved and how far the target's loss fell, so that "safe
because of the module" is told from "safe because it hardly moved". WORKDIR/forgetting.md says it all. Source: the
freeze-except ablation of the sources (nine families, 450 samples). experiments/engine/study.py runs what this says.
"""

import functools
import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from experiments import bases, parts
from experiments.engine import cli, study
from experiments.engine.tasks import Evaluate, Minimize, Start, Task
from experiments.engine.variants import Evaluators, Figure, Study, Variant
from experiments.parts import ALL, BASE, EVERYTHING, Part
from experiments.report import forgetting
from experiments.report.forgetting import ACCURACY, Claims, Items
from freezejax import models
from freezejax.data import Corpus
from freezejax.data.puzzles import FAMILIES, Puzzle, draw, read_jsonl
from freezejax.errors import UserError
from freezejax.paths import PyTree, check_known
from freezejax.sharding import Layout
from freezejax.training import processes
from freezejax.training.answers import AnswerBatches, Scores, by_family, encoded, make_scorer
from freezejax.training.batches import BatchSource
from freezejax.training.checkpoints import load_params
from freezejax.training.evaluation import Apply
from freezejax.training.objectives.base import Objective
from freezejax.training.objectives.language_modelling import LanguageModelling

_POINTS = {"shared_experts": 0.0, "out_proj": 0.0, "lm_head": -0.4, "v_proj": -2.9, "q_proj": -10.4, "down_proj": -35.6}
_POINTS |= {"up_proj": -35.8, "in_proj": -38.4, "o_proj": -42.9, ALL: -40.9}
# The source's percentage points of accuracy over all nine families, against its baseline of 68.0 %.
CLAIMS = Claims("freeze-except ablation", "450 samples of nine families", _POINTS)
FILES = ("train", "target", "test")  # of a folder of the user's, with .jsonl
POWER = "items_power.json"  # in the folder of a run: the scores of more puzzles
FIGURES = (Figure("error", "wrong answers", "share"), Figure("answer_ce", "CE of answers", "nats/token"))


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
        known = {puzzle.family for puzzle in test}
        for name in sorted({puzzle.family for puzzle in tune}):
            check_known(name, known, f"{c.path}/target.jsonl: test.jsonl has no family {name!r}")
        if known <= {puzzle.family for puzzle in tune}:
            raise UserError(f"{c.path}/test.jsonl: no family but those of target.jsonl: there is nothing to forget")
        return Puzzles(train, tune, test, sorted({puzzle.family for puzzle in tune}))
    for name in target:
        check_known(name, FAMILIES, f"config.puzzles.target: there is no family {name!r}")
    others, how = [name for name in FAMILIES if name not in target], {"level": c.level, "examples": c.examples}
    share = -(-c.tune // len(target))
    return Puzzles(
        [puzzle for name in others for puzzle in draw(name, c.train, **how)],
        [puzzle for name in target for puzzle in draw(name, share, **how)][: c.tune],
        [puzzle for name in FAMILIES for puzzle in draw(name, c.test, split="test", **how)],
        target,
    )


def puzzles_of(config: ConfigDict) -> Puzzles:
    """The puzzles of a config, drawn once."""
    return _drawn(config.puzzles.to_json())


class Scored:
    """Figures of parameters, over all test puzzles and of each family (`error/FAMILY`, `answer_ce/FAMILY`)."""

    def __init__(self, puzzles: Sequence[Puzzle], scores: Callable[[PyTree], Scores]):  # noqa: D107
        self.puzzles, self.scores = puzzles, scores

    def __call__(self, params: PyTree) -> Mapping[str, float]:
        """As an evaluation of the engine."""
        return self.items(params)[0]

    def items(self, params: PyTree) -> parts.Scored:
        """And 100 for every puzzle that is answered, 0 for every other."""
        scores = self.scores(params)
        families = by_family(self.puzzles, scores)
        each = {f"answer_ce/{name}": nats for name, (nats, _) in families.items()}
        each |= {f"error/{name}": 1.0 - share for name, (_, share) in families.items()}
        ce = float(scores.nats_N.sum() / scores.tokens_N.sum())
        figures = {"val_error": 1.0 - float(scores.right_N.mean()), "val_answer_ce": ce, **each}
        return figures, 100.0 * scores.right_N


class PuzzleEvaluators(Evaluators):
    """Scores on the test puzzles; runs of one model share one."""

    def of(
        self, model: Mapping[str, Any], apply: Apply, train: Mapping[str, Any], layout: Layout | None = None
    ) -> Evaluate:
        """The evaluation of a model."""
        key = json.dumps(model, sort_keys=True)
        if key not in self._known:
            test, sizes = puzzles_of(self.config).test, self.config
            scores = make_scorer(
                models.build(**model),
                test,
                self.corpus.tokenizer,
                seq_len=sizes.train.seq_len,
                batch_size=sizes.data.eval_batch_size,
                compute_dtype=train["compute_dtype"],
            )
            self._known[key] = Scored(test, scores)
        return self._known[key]


def make_study(config: ConfigDict, vocab_size: int, base: bases.Base | None = None) -> Study:
    """A base, one row for each type, and the rows that ask further; refuses a type that the model does not have."""
    model = model_of(config, vocab_size, base)
    if base is None:
        first = Variant(BASE, model, config.train.to_dict(), EVERYTHING, minimize=on_answers(config))
    else:
        first = parts.base_row(model, config, base.start(), on_answers(config))
    start: Start = lambda task: task.trained(BASE).params  # noqa: E731
    rows = parts.variants(config, model, start, functools.partial(on_answers, config), needs=[BASE])
    return Study(
        "freeze_except",
        [first, *rows],
        figures=FIGURES,
        evaluators=PuzzleEvaluators,
        check=functools.partial(_check, config),
        inputs={"puzzles": _digest(config)} if config.puzzles.path else {},
    )


def model_of(config: ConfigDict, vocab_size: int, base: bases.Base | None) -> dict[str, Any]:
    """Family and config, as for `models.build`."""
    own = {**config.model.to_dict(), "vocab_size": config.model.vocab_size or vocab_size}
    return own if base is None else base.model(config, vocab_size)


def on_answers(config: ConfigDict, part: Part | None = None, few: int = 0) -> Minimize:
    """Answers of the puzzles of the base or, of a `part`, of the target with a share of the base's mixed in.

    Every evaluation leaves beside the run which test puzzles were right.
    """

    def minimize(task: Task) -> tuple[Objective, BatchSource]:
        puzzles, evaluate = puzzles_of(config), task.evaluate
        assert isinstance(evaluate, Scored)
        score = parts.scorer(task, evaluate.items, None if part is None else task.trained(BASE).params)
        chosen = puzzles.train if part is None else _mixed(puzzles, part.mixed, task.config.seed)
        objective: Objective = LanguageModelling(task.model, task.config.compute_dtype, score, task.config.remat)
        if part is not None:
            objective = parts.few_of(objective, task, part, few)
        shown = part is None and config.puzzles.shown
        return objective, AnswerBatches(chosen, task.corpus.tokenizer, task.config, task.mesh, shown=shown)

    return minimize


def _mixed(puzzles: Puzzles, share: float, seed: int) -> list[Puzzle]:
    """The target's puzzles, and others until they are this share of all."""
    count = round(len(puzzles.tune) * share / (1 - share))
    return [*puzzles.tune, *random.Random(seed).sample(puzzles.train, count)]


def _digest(config: ConfigDict) -> str:
    """Of the files of the user's puzzles: other puzzles are another study."""
    puzzles_of(config)  # refuses files that cannot be read
    found = hashlib.sha256()
    for name in FILES:
        found.update(f"{name} ".encode() + (Path(config.puzzles.path) / f"{name}.jsonl").read_bytes())
    return found.hexdigest()


def _check(config: ConfigDict, corpus: Corpus) -> None:
    found = puzzles_of(config)
    for part in found[:3]:
        encoded(part, corpus.tokenizer, config.train.seq_len)


def main() -> None:
    """Runs every row, then says what each gained and forgot."""
    config = flags.FLAGS.config
    base = bases.Base(Path(config.base.path), bases.tokenizer_of(Path(config.base.path))) if config.base.path else None
    if base is not None and base.path is not None:
        models.model_of(base.path)  # refuses what is no model before any text is read
    made = functools.partial(make_study, base=base)
    if (workdir := study.main(made, tokenizer="" if base is None else base.tokenizer)) is not None:
        processes.on_main(lambda: tell(workdir, config, base))


def tell(workdir: Path, config: ConfigDict, base: bases.Base | None = None) -> None:
    """Writes and prints what a finished study says, and of its single types the same on more puzzles."""
    puzzles, rows = puzzles_of(config), parts.rows_of(workdir)
    items = Items([puzzle.family for puzzle in puzzles.test], puzzles.target, ACCURACY)
    parts.tell(workdir, rows, items, CLAIMS)
    if config.puzzles.power and not config.puzzles.path:
        told = [BASE, *(part.name for part in parts.singles(config))]
        rows = [row for row in rows if row["name"] in told]
        more = score_more(workdir, rows, config, base)
        parts.tell(workdir, rows, more, CLAIMS, "forgetting_power", POWER)


def score_more(workdir: Path, rows: Sequence[Mapping[str, Any]], config: ConfigDict, base: bases.Base | None) -> Items:
    """The weights that rows left, scored on `config.puzzles.power` test puzzles of each family; what is, is kept."""
    c = config.puzzles
    how: dict[str, Any] = {"level": c.level, "examples": c.examples, "split": "test"}
    puzzles = [puzzle for family in FAMILIES for puzzle in draw(family, c.power, **how)]
    tokenizer = study.load_corpus(config, "" if base is None else base.tokenizer).tokenizer
    model = models.build(**model_of(config, tokenizer.vocab_size, base))
    sizes = {"seq_len": config.train.seq_len, "batch_size": config.data.eval_batch_size}
    score = make_scorer(model, puzzles, tokenizer, **sizes, compute_dtype=config.train.compute_dtype)
    for row in rows:
        for seed in row["seeds"]:
            folder = forgetting.folder(workdir, row["name"], seed)
            if not (folder / POWER).exists():
                print(f"{row['name']}, seed {seed}: {len(puzzles):,} puzzles", flush=True)
                params = load_params(folder / "params", model.abstract_params())
                forgetting.write_items(folder, Scored(puzzles, score).items(params)[1], POWER)
    return Items([puzzle.family for puzzle in puzzles], puzzles_of(config).target, ACCURACY)


if __name__ == "__main__":
    cli.define_study_flags("experiments/configs/freeze_except.py:tiny")
    cli.run(main)
