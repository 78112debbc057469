"""Freeze everything but one type of module of a hybrid model and fine-tune it on one task: gain and decay.

    python -m experiments.freeze_except --config=experiments/configs/freeze_except.py:tiny --workdir=DIR

A base learns families of puzzles but the target; then each row fine-tunes one type of module on the target. What a row
forgets is read beside what it gains, how far its weights moved and how far the target's loss fell, so that "safe
because of the module" is told from "safe because it hardly moved". WORKDIR/forgetting.md says it all. Source: the
freeze-except ablation of the sources (nine families, 450 samples). experiments/engine/study.py runs what this says.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import bases, parts
from experiments.engine import cli, study
from experiments.engine.pretrained import tokenizer_of
from experiments.engine.tasks import Evaluate, Minimize, Start, Task
from experiments.engine.variants import Evaluators, Figure, Study, Variant
from experiments.engine.workdir import read_result
from experiments.parts import ALL, BASE, EVERYTHING, Part
from experiments.puzzles import check, digest, items_of, mixed, puzzles_of
from experiments.report import forgetting
from experiments.report.forgetting import Claims, Items
from freezejax import models
from freezejax.data.puzzles import FAMILIES, Puzzle, draw
from freezejax.paths import PyTree
from freezejax.sharding import Layout
from freezejax.training import processes
from freezejax.training.answers import AnswerBatches, Scorer, by_family, make_scorer
from freezejax.training.batches import BatchSource
from freezejax.training.checkpoints import load_params
from freezejax.training.evaluation import Apply
from freezejax.training.objectives.base import Objective
from freezejax.training.objectives.language_modelling import LanguageModelling

_POINTS = {"shared_experts": 0.0, "out_proj": 0.0, "lm_head": -0.4, "v_proj": -2.9, "q_proj": -10.4, "down_proj": -35.6}
_POINTS |= {"up_proj": -35.8, "in_proj": -38.4, "o_proj": -42.9, ALL: -40.9}
_TARGET = {"shared_experts": 0.0, "out_proj": 0.0, "lm_head": 0.0, "v_proj": -7.0, "q_proj": -6.0, "down_proj": -7.0}
_TARGET |= {"up_proj": -7.0, "in_proj": -7.0, "o_proj": -7.0, ALL: -6.0}
# The source's percentage points of accuracy over all nine families, against its baseline of 68.0 %, and over the two of
# the target, against 8 and 6 %. Of 50 puzzles a family, less than 5.5 points are noise in either (McNemar).
CLAIMS = Claims("freeze-except ablation", "450 samples of nine families", _POINTS, _TARGET, noise=5.5)
POWER = "items_power.json"  # in the folder of a run: the scores of more puzzles
FIGURES = (Figure("error", "wrong answers", "share"), Figure("answer_ce", "CE of answers", "nats/token"))


class Scored:
    """Figures of parameters, over all test puzzles and of each family (`error/FAMILY`, `answer_ce/FAMILY`)."""

    def __init__(self, puzzles: Sequence[Puzzle], scorer: Scorer):  # noqa: D107
        self.puzzles, self.scorer, self.losses = puzzles, scorer, scorer.nats

    def __call__(self, params: PyTree) -> Mapping[str, float]:
        """As an evaluation of the engine."""
        return self.items(params).figures

    def items(self, params: PyTree) -> parts.Scored:
        """And of every puzzle 100 if it is answered, else 0, and the nats of its answer."""
        scores = self.scorer.scores(params)
        families = by_family(self.puzzles, scores)
        each = {f"answer_ce/{name}": nats for name, (nats, _) in families.items()}
        each |= {f"error/{name}": 1.0 - share for name, (_, share) in families.items()}
        ce = float(scores.nats_N.sum() / scores.tokens_N.sum())
        figures = {"val_error": 1.0 - float(scores.right_N.mean()), "val_answer_ce": ce, **each}
        return parts.Scored(figures, 100.0 * scores.right_N, scores.nats_N)


class PuzzleEvaluators(Evaluators):
    """Scores on the test puzzles; runs of one model share one."""

    def of(
        self, model: Mapping[str, Any], apply: Apply, train: Mapping[str, Any], layout: Layout | None = None
    ) -> Evaluate:
        """The evaluation of a model."""
        key = json.dumps(model, sort_keys=True)
        if key not in self._known:
            test, sizes = puzzles_of(self.config).test, self.config
            scorer = make_scorer(
                models.build(**model),
                test,
                self.corpus.tokenizer,
                seq_len=sizes.train.seq_len,
                batch_size=sizes.data.eval_batch_size,
                compute_dtype=train["compute_dtype"],
            )
            self._known[key] = Scored(test, scorer)
        return self._known[key]


def make_study(config: ConfigDict, vocab_size: int, base: bases.Base | None = None) -> Study:
    """A base, one row for each type, and the rows that ask further; refuses a type that the model does not have."""
    model = model_of(config, vocab_size, base)
    if base is None:
        first = Variant(BASE, model, config.train.to_dict(), EVERYTHING, minimize=on_answers(config))
    else:
        first = parts.base_row(model, config, base.start(), on_answers(config, learns=False))
    start: Start = lambda task: task.trained(BASE).params  # noqa: E731
    rows = parts.variants(config, model, start, functools.partial(on_answers, config), needs=[BASE])
    return Study(
        "freeze_except",
        [first, *rows],
        figures=FIGURES,
        evaluators=PuzzleEvaluators,
        check=functools.partial(check, config, learns=base is None),
        inputs={
            **({"puzzles": digest(config)} if config.puzzles.path else {}),
            **({} if base is None or base.path is None else {"base": base.fingerprint()}),
        },
    )


def model_of(config: ConfigDict, vocab_size: int, base: bases.Base | None) -> dict[str, Any]:
    """Family and config, as for `models.build`."""
    own = {**config.model.to_dict(), "vocab_size": config.model.vocab_size or vocab_size}
    return own if base is None else base.model(config, vocab_size)


def on_answers(config: ConfigDict, part: Part | None = None, few: int = 0, learns: bool = True) -> Minimize:
    """Answers of the puzzles of the base or, of a `part`, of the target with a share of the base's mixed in.

    A base that `learns` nothing is only scored. Every evaluation leaves beside the run which test puzzles were right.
    """

    def minimize(task: Task) -> tuple[Objective, BatchSource]:
        puzzles, evaluate, first = puzzles_of(config), task.evaluate, part is None
        assert isinstance(evaluate, Scored)
        score = parts.scorer(task, evaluate, None if first else task.trained(BASE).params)
        objective: Objective = LanguageModelling(task.model, task.config.compute_dtype, score, task.config.remat)
        if part is not None:
            objective = parts.few_of(objective, task, part, few)
        share = 0.0 if part is None else part.mixed
        chosen = puzzles.train if first and learns else mixed(puzzles, share, task.config.seed)
        shown = first and learns and config.puzzles.shown
        return objective, AnswerBatches(chosen, task.corpus.tokenizer, task.config, task.mesh, shown=shown)

    return minimize


def main() -> None:
    """Runs every row, then says what each gained and forgot."""
    config = flags.FLAGS.config
    base = bases.Base(Path(config.base.path), tokenizer_of(Path(config.base.path))) if config.base.path else None
    if base is not None and base.path is not None:
        models.model_of(base.path)  # refuses what is no model before any text is read
    made = functools.partial(make_study, base=base)
    if (workdir := study.main(made, tokenizer="" if base is None else base.tokenizer)) is not None:
        processes.on_main(lambda: tell(workdir, config, base))


def tell(workdir: Path, config: ConfigDict, base: bases.Base | None = None) -> None:
    """Writes and prints what a finished study says, and of its single types the same on more puzzles."""
    puzzles, rows = puzzles_of(config), parts.rows_of(workdir)
    claims = forgetting.NO_CLAIMS if config.puzzles.path or base is not None else CLAIMS
    parts.tell(workdir, rows, items_of(puzzles.test, puzzles.target), config, claims)
    told = [row for row in rows if row["name"] in (BASE, *(part.name for part in parts.singles(config)))]
    if config.puzzles.power and not config.puzzles.path and len(told) > 1:
        more = score_more(workdir, told, config, base)
        parts.tell(workdir, told, more, config, claims, "forgetting_power", POWER)


def score_more(workdir: Path, rows: Sequence[Mapping[str, Any]], config: ConfigDict, base: bases.Base | None) -> Items:
    """The weights that rows left, scored on `config.puzzles.power` test puzzles of each family; what is, is kept."""
    c = config.puzzles
    how: dict[str, Any] = {"level": c.level, "examples": c.examples, "split": "test"}
    puzzles = [puzzle for family in FAMILIES for puzzle in draw(family, c.power, **how)]
    tokenizer = study.load_corpus(config, "" if base is None else base.tokenizer).tokenizer
    model = models.build(**model_of(config, tokenizer.vocab_size, base))
    sizes = {"seq_len": config.train.seq_len, "batch_size": config.data.eval_batch_size}
    scorer = make_scorer(model, puzzles, tokenizer, **sizes, compute_dtype=config.train.compute_dtype)
    for row in rows:
        for seed in row["seeds"]:
            folder = forgetting.folder(workdir, row["name"], seed)
            of = read_result(folder)["params_sha256"]
            if not (folder / POWER).exists() or json.loads((folder / POWER).read_text())["params_sha256"] != of:
                print(f"{row['name']}, seed {seed}: {len(puzzles):,} puzzles", flush=True)
                params = load_params(folder / "params", model.abstract_params())
                scores_N = Scored(puzzles, scorer).items(params).scores_N
                found = forgetting.Found(scores_N, np.zeros((0, len(puzzles))))
                forgetting.write_items(folder, found, POWER, params_sha256=of)
    return items_of(puzzles, puzzles_of(config).target)


if __name__ == "__main__":
    cli.define_study_flags("experiments/configs/freeze_except.py:tiny")
    cli.run(main)
