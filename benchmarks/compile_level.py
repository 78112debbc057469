"""What LLVM's levels of optimization, and one heap for all threads, cost when a step is compiled for a CPU.

    python -m benchmarks.compile_level --json=benchmarks/results/compile_level.json
    python -m benchmarks.compile_level --write_docs

The first measures, prints its table and writes it as JSON: minutes on 2 quiet CPU cores; with --quick a toy size. The
second writes the committed JSON's table into docs/performance.md, and measures nothing.
"""

import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import command, pages
from benchmarks.running_step import EVERYTHING
from benchmarks.tables import table
from benchmarks.timing import compare, interleave
from experiments.engine import accelerators
from freezejax import models
from freezejax.schedules import FreezeSchedule
from freezejax.training.config import TrainConfig
from freezejax.training.plan import RunPlan

RESULTS = pages.RESULTS / "compile_level.json"
PAGES = (pages.PERFORMANCE,)
LEVELS = ("3", "2", "1")  # the first is XLA's default
_MAPS = [{"pattern": ".*/(gate|up)/kernel", "kind": "map"}]
# name -> fields of the model, fields of the run
PROGRAMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "float32": ({}, {}),
    "bfloat16": ({}, {"compute_dtype": "bfloat16"}),
    "dropout": ({"dropout": 0.1}, {}),
    "gate and up maps": ({"weights": _MAPS}, {}),
    "Muon": ({}, {"optimizer": {"name": "muon"}}),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The model, its batch, and how often each step is timed."""

    num_layers: int = 4
    model_dim: int = 240
    batch_size: int = 8
    seq_len: int = 128
    rounds: int = 31
    programs: tuple[str, ...] = tuple(PROGRAMS)
    heaps: int = 3  # processes with one heap, and with one for each thread


QUICK = Settings(1, 64, 2, 16, 3, ("float32", "Muon"), 1)


class Steps:
    """Training steps of one executable, one per call; `compile_seconds` is what making it took."""

    def __init__(self, plan: RunPlan, lowered: jax.stages.Lowered, level: str) -> None:
        """Compiles, and makes the state."""
        start = time.perf_counter()
        self.step = lowered.compile({"xla_backend_optimization_level": int(level)})
        self.compile_seconds = time.perf_counter() - start
        self.state, self.frozen = plan.begin().split(plan.phases[0].mask)
        self.batch = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in plan.batch.items()}
        self.key, self.index, self.loss = plan.key(), 0, jnp.nan

    def __call__(self) -> None:
        """One step, waited for."""
        self.state, metrics = self.step(self.state, self.frozen, self.key, np.int32(self.index), self.batch)
        self.index += 1
        jax.block_until_ready(self.state)
        self.loss = metrics["loss"]


def measure(settings: Settings) -> dict[str, Any]:
    """Everything, as it stands in the JSON."""
    rows = [row for name in settings.programs for row in of_program(name, settings)]
    heaps = in_heaps(settings)
    return {"settings": dataclasses.asdict(settings), **pages.environment(), "rows": rows, "heaps": heaps}


def in_heaps(settings: Settings) -> list[dict[str, Any]]:
    """Seconds to compile the float32 step where all threads share a heap, and where each has its own, by turns."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(settings.heaps):
        for one_heap, seconds in found.items():
            call = f"from benchmarks.compile_level import print_seconds; print_seconds({one_heap}, {vars(settings)})"
            child = subprocess.run([sys.executable, "-c", call], stdout=subprocess.PIPE, text=True, check=True)
            seconds.append(float(child.stdout.split()[-1]))
    medians = {one_heap: statistics.median(seconds) for one_heap, seconds in found.items()}
    return [{"one_heap": one, "compile_s": median, "ratio": median / medians[False]} for one, median in medians.items()]


def print_seconds(one_heap: bool, settings: dict[str, Any]) -> None:
    """Compiles the float32 step, the only thing this process does."""
    accelerators.choose_platform()
    accelerators.keep_freed_memory(one_heap)
    with jax.numpy_dtype_promotion("standard"):
        print(Steps(*lowered("float32", Settings(**settings)), "1").compile_seconds)


def of_program(name: str, settings: Settings) -> list[dict[str, Any]]:
    """One row per level: seconds to compile, step time and last loss against the default."""
    plan, program = lowered(name, settings)
    programs = {level: Steps(plan, program, level) for level in LEVELS}
    rows = compare(interleave(programs, settings.rounds, sample_seconds=1e-3), LEVELS[0])
    default = programs[LEVELS[0]]
    for row, steps in zip(rows, programs.values(), strict=True):
        row |= {"program": name, "compile_s": steps.compile_seconds, "loss": float(steps.loss)}
        row |= {"compile_ratio": steps.compile_seconds / default.compile_seconds}
        row |= {"loss_moved": abs(float(steps.loss / default.loss) - 1)}
    return rows


def lowered(name: str, settings: Settings) -> tuple[RunPlan, jax.stages.Lowered]:
    """The plan of a program, and the program before it is compiled."""
    fields, run = PROGRAMS[name]
    batch = {"batch_size": settings.batch_size, "seq_len": settings.seq_len}
    config = TrainConfig.from_mapping({"steps": 1000, **batch, **run})
    model = models.build("geglu", num_layers=settings.num_layers, model_dim=settings.model_dim, num_heads=4, **fields)
    plan = RunPlan(model, config, FreezeSchedule([(0, EVERYTHING)]))
    return plan, plan.lower(0)


def write_tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Markdown by name of the table."""
    lines = [
        {
            "program": row["program"],
            "LLVM level": row["name"],
            "compile, s": f"{row['compile_s']:.2f}",
            "times level 3": f"{row['compile_ratio']:.2f}",
            "step, ms": f"{row['ms_median']:.1f}",
            "times the step of level 3": f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})",
            "moves the loss by": f"{row['loss_moved']:.0e}",
        }
        for row in found["rows"]
    ]
    heaps = [
        {
            "threads have": "one heap" if row["one_heap"] else "a heap each",
            "compile, s": f"{row['compile_s']:.2f}",
            "times": f"{row['ratio']:.2f}",
        }
        for row in found["heaps"]
    ]
    return {"levels": table(lines), "heaps": table(heaps), "machine": pages.sentence(found)}


if __name__ == "__main__":
    command.run(RESULTS, PAGES, lambda quick: measure(QUICK if quick else Settings()), write_tables)
