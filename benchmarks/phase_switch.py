"""What a phase boundary costs a run, in steps, with an empty and a filled compilation cache.

    python -m benchmarks.phase_switch --json=benchmarks/results/phase_switch.json
    python -m benchmarks.phase_switch --write_docs

The first runs the training loop itself several times and prints its tables: minutes on 2 quiet CPU cores; with
--quick a toy size. The second writes the committed JSON's tables into the pages that quote them.
"""

import dataclasses
import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from benchmarks import command, pages
from benchmarks.tables import table, verdict
from benchmarks.timing import compare, interleave
from freezejax import FreezeSchedule, models
from freezejax.training.batches import TokenBatches
from freezejax.training.config import TrainConfig
from freezejax.training.loop import train
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.plan import RunPlan
from freezejax.training.programs.tracing import Program
from freezejax.training.state import next_phase

RESULTS = pages.RESULTS / "phase_switch.json"
PAGES = (pages.README, pages.PERFORMANCE)
TARGET = 1.0  # steps lost at a boundary
NEAR = 10  # steps after a boundary over which the loss is counted
EVERYTHING = [(".*", True)]
PHASES = {
    "all": EVERYTHING,
    "gate and up frozen": [(r"blocks/\d+/mlp/(gate|up)/kernel", False), *EVERYTHING],
    "thawed": EVERYTHING,
    "half of the blocks frozen": [(r"tok_emb/.*|blocks/[012]/.*", False), *EVERYTHING],
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How large and how often."""

    model: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"num_layers": 6, "model_dim": 192, "num_heads": 6}
    )
    batch_size: int = 8
    seq_len: int = 256
    steps: int = 30  # of each phase
    rounds: int = 3  # runs, each with an empty and then with the filled cache
    crossings: int = 15  # samples of each crossing alone


QUICK = Settings({"num_layers": 3, "model_dim": 16, "num_heads": 1}, 2, 16, 10, 1, 3)


def measure(settings: Settings) -> dict[str, Any]:
    """Everything, as it stands in the JSON."""
    runs: list[dict[str, Any]] = []
    for _ in range(settings.rounds):
        with tempfile.TemporaryDirectory() as cache, compilation_cache_at(cache):
            for state in ("empty", "filled"):
                jax.clear_caches()
                compilation_cache.reset_cache()
                runs += [{"cache": state, **row} for row in stalls(settings)]
    return {
        "settings": dataclasses.asdict(settings),
        "target": TARGET,
        **pages.environment(),
        "stalls": runs,
        "crossings": time_crossings(settings),
        "first_runs": time_first_runs(settings),
    }


@contextmanager
def compilation_cache_at(folder: str) -> Iterator[None]:
    """JAX's compilation cache in this folder, everything kept."""
    wanted = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    try:
        for name, value in wanted.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # it holds on to the folder


def arguments(settings: Settings) -> tuple[models.Model, TrainConfig, FreezeSchedule]:
    """Model, config and schedule of the measured run."""
    model = models.build("geglu", **settings.model)
    config = TrainConfig(
        steps=settings.steps * len(PHASES),
        batch_size=settings.batch_size,
        seq_len=settings.seq_len,
    )
    return model, config, FreezeSchedule([(i * settings.steps, rules) for i, rules in enumerate(PHASES.values())])


def stalls(settings: Settings) -> list[dict[str, Any]]:
    """One run of the loop: what each boundary cost it.

    Every step is waited for, so that its end is known: nothing of a boundary can hide behind the step before it.
    `between_ms` is the time from the end of the last step of a phase to the start of the first step of the next.
    `lost_ms` is the time from that end to the end of the first ten steps of the next phase, less ten times the median
    of these ten: what compiling in the background slows alike on both sides of the boundary is not of the boundary.
    `stall_steps` is that in units of `step_ms`, the median over the whole phase.
    """
    spans: list[tuple[float, float]] = []
    call = Program.__call__

    def timed(program: Program, *args: Any) -> Any:
        start = time.perf_counter()
        result = jax.block_until_ready(call(program, *args))
        spans.append((start, time.perf_counter()))
        return result

    model, config, schedule = arguments(settings)
    tokens = np.random.default_rng(0).integers(0, 256, 100 * settings.seq_len * settings.batch_size).astype(np.uint16)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory, mock.patch.object(Program, "__call__", timed):
        objective, batches = LanguageModelling(model, config.compute_dtype), TokenBatches(tokens, config)
        train(model, objective, batches, config, schedule, Path(directory))
    seconds, rows = np.diff(spans, axis=1)[:, 0], []
    for number, (before, name) in enumerate(itertools.pairwise(PHASES), start=1):
        at = number * settings.steps
        step = float(np.median(seconds[at + 1 : at + settings.steps]))
        near, end = float(np.median(seconds[at : at + NEAR])), spans[at - 1][1]
        lost = spans[at + NEAR - 1][1] - end - NEAR * near
        rows.append(
            {
                "boundary": f"{before} -> {name}",
                "step_ms": 1e3 * step,
                "near_ms": 1e3 * near,
                "between_ms": 1e3 * (spans[at][0] - end),
                "lost_ms": 1e3 * lost,
                "stall_steps": lost / step,
                "until_first_step_s": spans[0][0] - begin,
            }
        )
    return rows


def _waited_for(call: Callable[[], Any]) -> None:
    jax.block_until_ready(call())


def time_crossings(settings: Settings) -> list[dict[str, Any]]:
    """Each crossing alone: prepared, as the loop has it, beside running `next_phase` operation by operation."""
    plan = RunPlan(*arguments(settings))
    state, rows = plan.begin(), []
    for index, (before, name) in enumerate(itertools.pairwise(PHASES), start=1):
        old, new = plan.phases[index - 1 : index + 1]
        transition = plan.transition(index)
        slow = functools.partial(next_phase, state, old, new, plan.optimizer(new), plan.config)
        ways = {"prepared": functools.partial(transition, state), "operation by operation": slow}
        calls = {way: functools.partial(_waited_for, call) for way, call in ways.items()}
        found = compare(interleave(calls, settings.crossings), "prepared")
        rows += [{"boundary": f"{before} -> {name}", **row} for row in found]
        state = transition(state)
    return rows


def time_first_runs(settings: Settings) -> list[dict[str, Any]]:
    """CPU time of the first run of each executable beside that of later ones; hardly touched by other work."""
    model, config, schedule = arguments(settings)
    plan = RunPlan(model, config, schedule)
    tokens = np.zeros(4 * settings.batch_size * settings.seq_len + 1, np.uint16)
    batches, state, rows = TokenBatches(tokens, config), plan.begin(), []
    for index, (name, phase) in enumerate(zip(PHASES, plan.phases, strict=True)):
        state = plan.transition(index)(state) if index else state
        if phase.mask in [other.mask for other in plan.phases[:index]]:
            continue  # it shares an executable
        program, (moving, frozen) = plan.compile(index).step, jax.tree.map(jnp.copy, state.split(phase.mask))
        milliseconds = []
        for _ in range(8):
            start = time.process_time()
            moving, _ = jax.block_until_ready(program(moving, frozen, plan.key(), np.int32(0), next(batches)))
            milliseconds.append(1e3 * (time.process_time() - start))
        rows.append({"phase": name, "first_ms": milliseconds[0], "later_ms": float(np.median(milliseconds[1:]))})
    return rows


def write_tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Markdown by name of the table."""
    return {
        "stalls": _stalls(found["stalls"], found["target"]),
        "crossings": _crossings(found["crossings"]),
        "first_runs": _first_runs(found["first_runs"]),
        "machine": pages.sentence(found),
    }


def _stalls(rows: Sequence[Mapping[str, Any]], target: float) -> str:
    lines = []
    for cache, boundary in dict.fromkeys((row["cache"], row["boundary"]) for row in rows):
        of_boundary = [row for row in rows if (row["cache"], row["boundary"]) == (cache, boundary)]
        values = {name: [row[name] for row in of_boundary] for name in of_boundary[0] if name.endswith(("ms", "steps"))}
        middle = {name: float(np.median(column)) for name, column in values.items()}
        low, high = min(values["stall_steps"]), max(values["stall_steps"])
        lines.append(
            {
                "compilation cache": cache,
                "boundary": boundary,
                "step, ms": f"{middle['step_ms']:.0f}",
                "first 10 steps, ms": f"{middle['near_ms']:.0f}",
                "between, ms": f"{middle['between_ms']:.1f}",
                "lost, steps": f"{middle['stall_steps']:.2f} ({low:.2f} to {high:.2f})",
                "target": f"{target:.0f}: {verdict(middle['stall_steps'] <= target)}",
            }
        )
    return table(lines)


def _crossings(rows: Sequence[Mapping[str, Any]]) -> str:
    by_boundary: dict[str, dict[str, str]] = {}
    for row in rows:
        line = by_boundary.setdefault(row["boundary"], {"boundary": row["boundary"]})
        line[f"{row['name']}, ms"] = f"{row['ms_median']:.1f}"
        line["times"] = f"{row['ratio']:.1f} ({row['ratio_low']:.1f} to {row['ratio_high']:.1f})"
    return table(list(by_boundary.values()))


def _first_runs(rows: Sequence[Mapping[str, Any]]) -> str:
    return table(
        [
            {
                "phase": row["phase"],
                "first run, ms of CPU": f"{row['first_ms']:.0f}",
                "later runs, ms of CPU": f"{row['later_ms']:.0f}",
                "more, steps": f"{row['first_ms'] / row['later_ms'] - 1:.2f}",
            }
            for row in rows
        ]
    )


if __name__ == "__main__":
    command.run(RESULTS, PAGES, lambda quick: measure(QUICK if quick else Settings()), write_tables)
