"""What may be frozen of your model, on your text, at a loss that you tolerate: measured by short runs.

    python -m experiments.recommend --model=DIR --data=DIR --tolerance=0.5%

Writes WORKDIR/recommendation.json: the groups to freeze, the schedule as rules, the predicted cost with its interval,
what a step saves. FLOPs and bytes are counted, so they have no interval; time is measured on this machine, in pairs of
steps. The model is then trained with the recommended groups frozen and with none, with seeds that nothing was fitted
on, and the command says whether the measured costs lie in the predicted interval; `--validate=DIR` does the same with
another model.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.bases import short
from experiments.engine import cli
from experiments.engine.pretrained import tokenizer_of
from experiments.report.statistics import Interval, interval
from freezejax import data, models
from freezejax.atomic import write_atomically
from freezejax.cost import recommendation
from freezejax.errors import UserError
from freezejax.paths import PyTree
from freezejax.schedules import FreezeSchedule
from freezejax.training.batches import TokenBatches
from freezejax.training.config import OptimizerConfig, TrainConfig
from freezejax.training.evaluation import make_evaluator
from freezejax.training.interrupts import StopSignal, catch_signals
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.plan import RunPlan
from freezejax.training.sweep import sweep

FILE = "recommendation.json"
PAIRS = 10  # of steps that are timed
GROUPS = {  # what is frozen together
    "matrices": lambda kernel: f"L{short(kernel)[0]}_{short(kernel)[1]}",
    "types": lambda kernel: short(kernel)[1],
    "layers": lambda kernel: f"layer_{short(kernel)[0]}",
}


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("model", None, "Folder with config.json and safetensors, or a .gguf file.")
    flags.DEFINE_string("data", "", "Text to fine-tune on, as config.data.path of a study; empty = the embedded text.")
    flags.DEFINE_string("tokenizer", None, "Where the model has none beside it, as for config.data.tokenizer.")
    flags.DEFINE_string("tolerance", "0.5%", "Largest rise of the loss, percent of that with everything trained.")
    flags.DEFINE_string("workdir", None, f"Folder for {FILE}; else runs/recommend_NAME, by the name of the model.")
    flags.DEFINE_enum("groups", "matrices", [*GROUPS], "What is frozen together.")
    flags.DEFINE_integer("steps", 50, "Steps of each run.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 4, "Sequences per step.", lower_bound=1)
    flags.DEFINE_integer("seq_len", 128, "Tokens per sequence.", lower_bound=1)
    flags.DEFINE_float("learning_rate", 3e-4, "At its peak; it falls to zero by the last step.", lower_bound=0.0)
    flags.DEFINE_integer("subsets", 0, "How many are measured; 0 = three times the groups + seeds.", lower_bound=0)
    flags.DEFINE_integer("seeds", 6, "Of data order; the subsets are dealt out among them.", lower_bound=1)
    flags.DEFINE_integer("val_sequences", 128, "Sequences of the validation text to score.", lower_bound=1)
    flags.DEFINE_multi_string("validate", [], "Another model to train with the recommendation, too; may be repeated.")


def main() -> None:
    """Measures, recommends, and validates where asked."""
    given = flags.FLAGS
    if not given.model:
        raise UserError("--model is missing: give a folder")
    tolerance, workdir = _percent(given.tolerance), Path(given.workdir or default_workdir(given.model)).absolute()
    cli.use_compilation_cache()
    setup = _Setup(given)
    model, params = models.model_of(given.model), models.load_pretrained(given.model)[1]
    groups, path = groups_of(model, given.groups), workdir / FILE
    for other in given.validate:
        setup.check_other(other, groups, given.groups)
    print(f"Writes {path}")
    with cli.writing(f"--workdir={workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
    with catch_signals() as stop:
        found = recommendation.recommend(
            model,
            params,
            setup.objective(model),
            setup.batches,
            setup.config,
            tolerance_pct=tolerance,
            groups=groups,
            subsets=given.subsets,
            seeds=given.seeds,
            say=print,
            stop=stop,
        )
        saved = setup.time_saved_pct(model, params, found.schedule) if found.frozen else Interval(0.0, 0.0)
        told = {"model": Path(given.model).name, "tolerance_pct": tolerance, **recommendation.describe(found)}
        told["saved"] |= {"time_pct": saved._asdict()}
        show(found, tolerance, saved)
        write_atomically(path, json.dumps({**told, "validated": []}, indent=1) + "\n")  # what comes may be stopped
        checked = [validate(path, setup, found, given.groups, stop) for path in (given.model, *given.validate)]
    write_atomically(path, json.dumps({**told, "validated": checked}, indent=1) + "\n")
    inside = [cost for each in checked for cost in each["inside"]]
    print(f"{sum(inside)} of {len(inside)} measured costs lie in the interval predicted for one run")
    print(f"Written: {path}")


def default_workdir(model: str) -> str:
    """The folder for what is said of a model, where none is given.

    >>> default_workdir("models/SmolLM2-135M/"), default_workdir("SmolLM2.Q4_1.gguf")
    ('runs/recommend_SmolLM2-135M', 'runs/recommend_SmolLM2.Q4_1')
    """
    return f"runs/recommend_{Path(model).absolute().name.removesuffix('.gguf')}"


def groups_of(model: models.Model, kind: str) -> dict[str, str]:
    """Name -> pattern of the matrices of each group."""
    of_kernel = recommendation.each_block_matrix(model.abstract_params())
    found: dict[str, list[str]] = {}
    for kernel, pattern in of_kernel.items():
        found.setdefault(GROUPS[kind](kernel), []).append(pattern)
    return {name: "|".join(patterns) for name, patterns in found.items()}


class _Setup:
    """The text and the runs, the same for every model."""

    def __init__(self, given: Any) -> None:
        tokenizer = given.tokenizer or tokenizer_of(Path(given.model))
        self.corpus = data.load(given.data, tokenizer=tokenizer, cache_dir=str(cli.cache_dir() / "data"))
        optimizer = OptimizerConfig(learning_rate=given.learning_rate, weight_decay=0.0)
        self.config = TrainConfig(given.steps, given.batch_size, given.seq_len, optimizer=optimizer)
        self.sequences, self.seeds = given.val_sequences, given.seeds

    def batches(self, config: TrainConfig) -> TokenBatches:
        return TokenBatches(self.corpus.train, config)

    def check_vocabulary(self, model: models.Model) -> None:
        if model.config.vocab_size < self.corpus.tokenizer.vocab_size:
            raise UserError(f"the text's tokenizer has {self.corpus.tokenizer.vocab_size} tokens, the model fewer")

    def check_other(self, path: str, groups: dict[str, str], kind: str) -> None:
        """Refuses a model to validate on that these groups or this text do not fit: before anything is measured."""
        try:
            other = models.model_of(path)
            self.check_vocabulary(other)
        except UserError as error:
            raise UserError(f"--validate={path}: {error}") from None
        if missing := [name for name in groups if name not in groups_of(other, kind)]:
            raise UserError(f"--validate={path}: this model has no group {missing[0]!r}")

    def objective(self, model: models.Model) -> LanguageModelling:
        self.check_vocabulary(model)
        windows = (len(self.corpus.val) - 1) // self.config.seq_len
        evaluate = make_evaluator(
            model.apply,
            self.corpus.val,
            self.corpus.tokenizer.byte_table(),
            batch_size=min(16, max(1, windows)),
            seq_len=self.config.seq_len,
            compute_dtype=self.config.compute_dtype,
            every=max(1, windows // self.sequences),
        )
        return LanguageModelling(model, self.config.compute_dtype, lambda params: evaluate(params)._asdict())

    def time_saved_pct(self, model: models.Model, params: PyTree, schedule: FreezeSchedule) -> Interval:
        """What the schedule saves of the time of a step with everything trained, on this machine, over pairs of steps.

        Unlike the share of FLOPs, it has in it what freezing does not save: memory traffic, launches, the input.
        """
        schedules = FreezeSchedule([(0, [(".*", True)])]), schedule
        whole, frozen = (self._stepping(model, params, each) for each in schedules)
        for step in (whole, frozen):  # the first use of a program sets it up
            step()
        return interval([100 * (1 - ours / full) for full, ours in ((whole(), frozen()) for _ in range(PAIRS))])

    def _stepping(self, model: models.Model, params: PyTree, schedule: FreezeSchedule) -> Callable[[], float]:
        """A function that runs one more step and gives its seconds."""
        plan = RunPlan(model, self.config, schedule, params=params)
        program, batch = plan.compile(0).step, plan.place(next(self.batches(self.config)))
        state, frozen = plan.begin(params).split(plan.phases[0].mask)
        frozen, key = plan.held(frozen), plan.key()

        def run() -> float:
            nonlocal state
            began = time.perf_counter()
            state, metrics = program(state, frozen, key, np.int32(0), batch)
            jax.block_until_ready((state, metrics))
            return time.perf_counter() - began

        return run


def validate(
    path: str, setup: _Setup, found: recommendation.Recommendation, kind: str, stop: StopSignal
) -> dict[str, Any]:
    """Trains a model with the recommended groups frozen and with none, with seeds that nothing was fitted on."""
    model, params = models.model_of(path), models.load_pretrained(path)[1]
    patterns = groups_of(model, kind)
    schedules = [FreezeSchedule([(0, recommendation.rules_of(patterns, f))]) for f in ((), found.frozen)]
    costs = []
    for seed in range(setup.seeds, 2 * setup.seeds):
        config = dataclasses.replace(setup.config, seed=seed)
        ran = sweep(model, setup.objective(model), setup.batches(config), config, schedules, params=params, stop=stop)
        whole, frozen = (each.records[-1]["val_ce"] for each in ran)
        costs.append(100 * (frozen / whole - 1))
    inside = [bool(found.one_run.low <= cost <= found.one_run.high) for cost in costs]
    told = ", ".join(f"{cost:+.2f}" for cost in costs)
    print(f"{path}: measured {told} %, predicted {_interval(found.one_run)}")
    return {"model": Path(path).name, "costs_pct": costs, "inside": inside}


def show(found: recommendation.Recommendation, tolerance: float, time_saved: Interval) -> None:
    """Prints the groups, cheapest first, and what is recommended; `time_saved` is in percent."""
    alone = {name: found.fit.predict([name]) for name in found.fit.names}
    print(f"What freezing each group costs by itself, percent of a loss of {found.fit.level:.4f}:")
    for name in sorted(alone, key=lambda name: alone[name].mean):
        print(f"  {name:28} {_interval(alone[name]):28} {'freeze' if name in found.frozen else ''}")
    saved, time_told = found.saved, f"{time_saved.mean:.0f} % [{time_saved.low:.0f}, {time_saved.high:.0f}]"
    print(
        f"Frozen: {len(found.frozen)} of {len(alone)} groups, at a tolerance of {tolerance:g} %. Predicted cost "
        f"{_interval(found.cost)}; a step saves {saved['flops']:.0%} of its FLOPs, {saved['memory']:.0%} of the bytes "
        f"of gradients and optimizer state, and here {time_told} of its time."
    )


def _interval(cost: recommendation.Cost) -> str:
    return f"{cost.mean:+.2f} % [{cost.low:+.2f}, {cost.high:+.2f}]"


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = np.nan
    if not 0 < value < 100:
        raise UserError(f"--tolerance={text}: expected a percentage above 0, such as 0.5%")
    return value


if __name__ == "__main__":
    define_flags()
    cli.run(main)
