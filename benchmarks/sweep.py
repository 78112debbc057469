"""Many freeze schedules of one model: a run each, or one sweep, compilation included.

    python -m benchmarks.sweep --json=benchmarks/results/sweep.json
    python -m benchmarks.sweep --write_docs

The first measures, prints its table and writes it as JSON: some six minutes on 2 quiet CPU cores; with --quick a toy
size. The second writes the committed JSON's table into docs/performance.md, and measures nothing. Every way runs in a
process of its own without a compilation cache, and the runs alone in one process, as a study has them.
"""

import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import command, pages
from benchmarks.tables import table
from experiments.engine import accelerators
from freezejax import models
from freezejax.cost.effects import draw_subsets
from freezejax.cost.recommendation import each_block_matrix, rules_of
from freezejax.schedules import FreezeSchedule
from freezejax.training.batches import TokenBatches
from freezejax.training.config import TrainConfig
from freezejax.training.loop import train
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.sweep import sweep

RESULTS = pages.RESULTS / "sweep.json"
PAGES = (pages.PERFORMANCE,)
ALONE = "a run each"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The model and runs of the tiny scale of `experiments.redundancy`, and how many differ in what is frozen."""

    num_layers: int = 2
    model_dim: int = 64
    batch_size: int = 4
    seq_len: int = 64
    steps: int = 20
    variants: int = 24
    widths: tuple[int, ...] = (1, 4, 24)
    rounds: int = 3


QUICK = Settings(1, 16, 2, 16, 2, 3, (1, 3), 1)


def measure(settings: Settings) -> dict[str, Any]:
    """Everything, as it stands in the JSON."""
    ways = [ALONE, *(f"{width} at a time" for width in settings.widths)]
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(settings.rounds):  # by turns
        for way, of_way in found.items():
            call = f"from benchmarks.sweep import print_seconds; print_seconds({way!r}, {vars(settings)})"
            child = subprocess.run([sys.executable, "-c", call], stdout=subprocess.PIPE, text=True, check=True)
            seconds, checksum = map(float, child.stdout.split()[-2:])
            of_way.append((seconds, checksum))
    alone = statistics.median(seconds for seconds, _ in found[ALONE])
    rows = [
        {
            "way": way,
            "seconds": (median := statistics.median(seconds for seconds, _ in of_way)),
            "times": alone / median,
            "moved": abs(of_way[0][1] / found[ALONE][0][1] - 1),
        }
        for way, of_way in found.items()
    ]
    return {"settings": dataclasses.asdict(settings), **pages.environment(), "rows": rows}


def print_seconds(way: str, settings: dict[str, Any]) -> None:
    """Runs all schedules in one way, the only thing this process does: seconds, and the sum of the sizes of weights."""
    accelerators.choose_platform()
    accelerators.keep_freed_memory()
    with jax.numpy_dtype_promotion("standard"):
        print(*_run(way, Settings(**settings)))


def _run(way: str, settings: Settings) -> tuple[float, float]:
    sizes: dict[str, Any] = {"num_layers": settings.num_layers, "model_dim": settings.model_dim, "num_heads": 2}
    model = models.build("gpt2", vocab_size=256, positions=128, **sizes)
    config = TrainConfig(settings.steps, settings.batch_size, settings.seq_len)
    tokens = np.random.default_rng(0).integers(0, 256, 20_000).astype(np.uint16)
    patterns = each_block_matrix(model.abstract_params())
    subsets = draw_subsets(len(patterns), settings.variants)
    chosen = [[name for name, frozen in zip(patterns, row, strict=True) if frozen] for row in subsets]
    schedules = [FreezeSchedule([(0, rules_of(patterns, frozen))]) for frozen in chosen]
    objective, start = LanguageModelling(model, config.compute_dtype), time.perf_counter()
    if way == ALONE:
        with tempfile.TemporaryDirectory() as folder:
            results = [
                train(
                    model, objective, TokenBatches(tokens, config), config, schedule, Path(folder, str(number))
                ).params
                for number, schedule in enumerate(schedules)
            ]
    else:
        source, width = TokenBatches(tokens, config), int(way.split()[0])
        results = [each.params for each in sweep(model, objective, source, config, schedules, width=width)]
    total = sum(float(np.abs(np.asarray(leaf)).sum()) for params in results for leaf in jax.tree.leaves(params))
    return time.perf_counter() - start, total


def write_tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Markdown by name of the table."""
    lines = [
        {
            f"{found['settings']['variants']} schedules": row["way"],
            "seconds": f"{row['seconds']:.1f}",
            "times as fast": f"{row['times']:.1f}",
            "moves the weights by": f"{row['moved']:.0e}",
        }
        for row in found["rows"]
    ]
    return {"ways": table(lines), "machine": pages.sentence(found)}


if __name__ == "__main__":
    command.run(RESULTS, PAGES, lambda quick: measure(QUICK if quick else Settings()), write_tables)
