"""Freeze everything but one type of module of a hybrid model and fine-tune it on one task: gain and decay.

    python -m experiments.freeze_except --config=experiments/configs/freeze_except.py:tiny --workdir=DIR

A base learns families of puzzles but the target; then each row fine-tunes one type of module on the target. What a row
forgets is read beside what it gains, how far its weights moved and how far the target's loss fell, so that "safe
because of the module" is told from "safe because it hardly moved". WORKDIR/forgetting.md says it all. Source: the
freeze-except ablation of the sources (nine families, 450 samples). experiments/engine/study.py runs what this says.
"""

import functools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict

from experiments import bases
from experiments.engine import cli, study
from experiments.engine.tasks import Evaluate, Minimize, Start, Task
from experiments.engine.variants import Evaluators, Figure, Study, Variant
from experiments.report import forgetting
from freezejax import models
from freezejax.atomic import write_atomically
from freezejax.data import Corpus
from freezejax.data.puzzles import FAMILIES, Puzzle, draw, read_jsonl
from freezejax.errors import UserError
from freezejax.paths import PyTree, check_known
from freezejax.schedules import FreezeSchedule
from freezejax.selection import only
from freezejax.sharding import Layout
from freezejax.training import processes
from freezejax.training.answers import AnswerBatches, Scores, by_family, encoded, make_scorer
from freezejax.training.batches import BatchSource
from freezejax.training.evaluation import Apply
from freezejax.training.objectives.base import Objective
from freezejax.training.objectives.language_modelling import LanguageModelling

BASE, ALL = "base", "all"
# Of the source: percentage points of accuracy over all nine families against its baseline of 68.0 %.
CLAIMS = {"shared_experts": 0.0, "out_proj": 0.0, "lm_head": -0.4, "v_proj": -2.9, "q_proj": -10.4, "down_proj": -35.6}
CLAIMS |= {"up_proj": -35.8, "in_proj": -38.4, "o_proj": -42.9, ALL: -40.9}
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
        train, tune, test = (read_jsonl(Path(c.path) / f"{name}.jsonl") for name in ("train", "target", "test"))
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
    """Figures of parameters: over all test puzzles, and of each family (`error/FAMILY`, `answer_ce/FAMILY`)."""

    def __init__(self, puzzles: Sequence[Puzzle], scores: Callable[[PyTree], Scores]):  # noqa: D107
        self.puzzles, self.scores = puzzles, scores

    def __call__(self, params: PyTree) -> dict[str, float]:
        """As an evaluation of the engine."""
        return self.figures(self.scores(params))

    def figures(self, scores: Scores) -> dict[str, float]:
        """Of what was scored."""
        families = by_family(self.puzzles, scores)
        each = {f"answer_ce/{name}": nats for name, (nats, _) in families.items()}
        each |= {f"error/{name}": 1.0 - share for name, (_, share) in families.items()}
        ce = float(scores.nats_N.sum() / scores.tokens_N.sum())
        return {"val_error": 1.0 - float(scores.right_N.mean()), "val_answer_ce": ce, **each}


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
    size = config.model.vocab_size or vocab_size
    model = {**config.model.to_dict(), "vocab_size": size} if base is None else base.model(config, vocab_size)
    params = models.build(**model).abstract_params()
    train = config.train.to_dict()
    everything, nothing = ([(0, [(".*", trains)])] for trains in (True, False))
    variants = [Variant(BASE, model, train, FreezeSchedule(everything), minimize=on_answers(config, tuned=False))]
    start: Start = lambda task: task.trained(BASE).params  # noqa: E731
    if base is not None:  # one step in which nothing trains: only to be scored
        still = FreezeSchedule(nothing)
        once = {**train, "steps": 1}
        variants = [Variant(BASE, model, once, still, minimize=on_answers(config, tuned=False), start=base.start())]
    for name, types, changes, mixed in rows(config):
        schedule = FreezeSchedule(everything if types is None else [(0, only(params, types))])
        tuned = _tuned(config, changes)
        how = on_answers(config, tuned=True, mixed=mixed)
        variants.append(Variant(name, model, tuned, schedule, minimize=how, start=start, needs=[BASE]))
    return Study(
        "freeze_except",
        variants,
        figures=FIGURES,
        evaluators=PuzzleEvaluators,
        check=functools.partial(_check, config),
    )


def rows(config: ConfigDict) -> list[tuple[str, list[str] | None, dict[str, float], float]]:
    """Name, types (None: all), factors of the config's steps and learning rate, and share of other families."""
    singles: dict[str, list[str] | None] = {name.strip(): [name.strip()] for name in config.types.split(",")}
    singles[ALL] = None
    pairs = {"_and_".join(pair.split()): pair.split() for pair in config.pairs.split(",") if pair.strip()}
    found: list[tuple[str, list[str] | None, dict[str, float], float]] = []
    found += [(name, types, {}, 0.0) for name, types in {**singles, **pairs}.items()]
    if config.longer > 1:
        found += [(f"{name}_longer", types, {"steps": config.longer}, 0.0) for name, types in singles.items()]
    for rate in config.rates:
        if rate != 1:
            found += [(f"{n}_rate_{rate:g}", types, {"learning_rate": rate}, 0.0) for n, types in singles.items()]
    if config.mixed:
        found += [(f"{name}_mixed", types, {}, config.mixed) for name, types in singles.items()]
    return found


def _tuned(config: ConfigDict, changes: Mapping[str, float]) -> dict[str, Any]:
    train, tune = config.train.to_dict(), config.tune
    factor = changes.get("steps", 1)
    rate = tune.learning_rate * changes.get("learning_rate", 1.0)
    optimizer = {**train["optimizer"], "learning_rate": rate, "adam_learning_rate": rate, "warmup_steps": 0}
    return {
        **train,
        "steps": int(tune.steps * factor),
        "batch_size": tune.batch_size,
        "eval_every": int(tune.eval_every * factor),
        "checkpoint_every": 0,
        "optimizer": {**optimizer, "weight_decay": 0.0},
    }


def on_answers(config: ConfigDict, *, tuned: bool, mixed: float = 0.0) -> Minimize:
    """Answers of the puzzles of the base or, `tuned`, of the target with a share of the base's mixed in.

    Every evaluation leaves beside the run which test puzzles were right (`answers.json`); of a tuned run it also says
    how far the weights are from those of the base: the norm of the difference.
    """

    def minimize(task: Task) -> tuple[Objective, BatchSource]:
        puzzles, evaluate = puzzles_of(config), task.evaluate
        assert isinstance(evaluate, Scored)
        before = task.trained(BASE).params if tuned else None

        def score(params: PyTree) -> dict[str, float]:
            scores = evaluate.scores(params)
            processes.on_main(lambda: forgetting.write_answers(task.directory, scores.right_N, scores.nats_N))
            moved = {} if before is None else {"moved": float(_distance(params, before))}
            return {**evaluate.figures(scores), **moved}

        chosen = _mixed(puzzles, mixed, task.config.seed) if tuned else puzzles.train
        objective = LanguageModelling(task.model, task.config.compute_dtype, score, task.config.remat)
        return objective, AnswerBatches(chosen, task.corpus.tokenizer, task.config, task.mesh)

    return minimize


def _mixed(puzzles: Puzzles, share: float, seed: int) -> list[Puzzle]:
    """The target's puzzles, and others until they are this share of all."""
    count = round(len(puzzles.tune) * share / (1 - share))
    return [*puzzles.tune, *random.Random(seed).sample(puzzles.train, count)]


@jax.jit
def _distance(params: PyTree, before: PyTree) -> jax.Array:
    squares = jax.tree.map(lambda a, b: jnp.sum(jnp.square(jnp.float32(a) - jnp.float32(b))), params, before)
    return jnp.sqrt(sum(jax.tree.leaves(squares)))


def _check(config: ConfigDict, corpus: Corpus) -> None:
    if not 0 <= config.mixed < 1:
        raise UserError(f"config.mixed={config.mixed}: expected a share from 0 to below 1")
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
        processes.on_main(lambda: _tell(workdir, config))


def _tell(workdir: Path, config: ConfigDict) -> None:
    puzzles, summary = puzzles_of(config), json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
    found = forgetting.measure(workdir, summary["rows"], [p.family for p in puzzles.test], puzzles.target, CLAIMS)
    write_atomically(workdir / "forgetting.json", json.dumps(found, indent=1) + "\n")
    write_atomically(workdir / "forgetting.md", text := forgetting.as_markdown(found))
    write_atomically(workdir / "forgetting.svg", forgetting.picture(found))
    print(f"\n{text}\nWritten: {workdir / 'forgetting.md'}, .json and .svg")


if __name__ == "__main__":
    cli.define_study_flags("experiments/configs/freeze_except.py:tiny")
    cli.run(main)
