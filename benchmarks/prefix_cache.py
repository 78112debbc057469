"""Steps per second of a frozen prefix: in the step, apart from it, and kept in memory or on disk.

    python -m benchmarks.prefix_cache --json=benchmarks/results/prefix_cache.json
    python -m benchmarks.prefix_cache --write_docs

The first measures and prints its tables: minutes on 2 quiet CPU cores; with --quick a toy size. The second writes the
committed JSON's tables into the pages that quote them. Losses must be the same bits in all forms of a prefix apart.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import command, pages
from benchmarks.tables import table, verdict
from benchmarks.timing import compare, interleave
from freezejax import FreezeSchedule, models
from freezejax.models.layers import rms_norm
from freezejax.training.batches import TokenBatches
from freezejax.training.config import TrainConfig
from freezejax.training.plan import RunPlan
from freezejax.training.prefix_cache.batches import phase_batches

RESULTS = pages.RESULTS / "prefix_cache.json"
PAGES = (pages.README, pages.PERFORMANCE)
TARGET = 3.0  # times the steps per second of full training, from the cache, at a 75 % prefix
EVERYTHING = [(".*", True)]
FULL = "everything trains"
FORMS = {
    "in the step": "off",
    "apart, computed each time": "recompute",
    "from memory": "memory",
    "from disk": "disk",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How large and how often."""

    families: Mapping[str, Mapping[str, Any]] = dataclasses.field(
        default_factory=lambda: {
            "geglu": {"num_layers": 8, "model_dim": 192, "num_heads": 6},
            "parameter_golf": {"num_layers": 8, "model_dim": 192, "num_heads": 6, "num_kv_heads": 3, "vocab_size": 256},
        }
    )
    batch_size: int = 8
    seq_len: int = 256
    windows: int = 64  # in the corpus
    rounds: int = 25


_TINY = {"num_layers": 4, "model_dim": 16, "num_heads": 1, "num_kv_heads": 1, "vocab_size": 256}
QUICK = Settings({"parameter_golf": _TINY}, 2, 16, 4, 3)


def measure(settings: Settings) -> dict[str, Any]:
    """Everything, as it stands in the JSON."""
    return {
        "settings": dataclasses.asdict(settings),
        "target": TARGET,
        **pages.environment(),
        "steps": [row for family in settings.families for row in time_steps(settings, family)],
        "embedding": time_embedding(settings),
    }


class Trainer:
    """Training steps of one phase, one per call; `losses` are those of all calls."""

    def __init__(self, settings: Settings, family: str, rules: Any, prefix_cache: str, folder: Path) -> None:
        """Compiles, and makes the state."""
        model = models.build(family, **settings.families[family])
        config = TrainConfig(10_000, settings.batch_size, settings.seq_len, prefix_cache=prefix_cache)
        plan = RunPlan(model, config, FreezeSchedule([(0, rules)]))
        tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, settings.windows * settings.seq_len + 1)
        self.programs, self.key = plan.compile(0), plan.key()
        self.state, self.frozen = plan.begin().split(plan.phases[0].mask)
        batches = TokenBatches(tokens.astype(np.uint16), config)
        self.context = phase_batches(batches, self.programs, self.frozen, config, folder)
        self.losses: list[float] = []

    def __call__(self) -> None:
        """One step, waited for."""
        index = np.int32(len(self.losses))
        self.state, metrics = self.programs.step(self.state, self.frozen, self.key, index, next(self.batches))
        jax.block_until_ready(self.state)
        self.losses.append(float(metrics["loss"]))

    def __enter__(self) -> "Trainer":
        """Opens the cache."""
        self.batches = self.context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Removes the cache."""
        self.context.__exit__(*error)


def time_steps(settings: Settings, family: str) -> list[dict[str, Any]]:
    """Each form of a 75 % prefix beside full training, one step each in turn, caches filled.

    Raises:
      AssertionError: a loss from a cache differs in a bit from the one computed.
    """
    layers = settings.families[family]["num_layers"]
    frozen = "|".join(str(block) for block in range(layers * 3 // 4))
    # The second half of the U-net weighs what the first half pushed: those weights are part of its prefix.
    rules = [(rf"tok_emb/.*|skip_weights|blocks/({frozen})/.*", False), *EVERYTHING]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        trainers = {FULL: Trainer(settings, family, EVERYTHING, "off", Path(folder) / "full")}
        for name, kind in FORMS.items():
            trainers[name] = Trainer(settings, family, rules, kind, Path(folder) / kind)
        for trainer in trainers.values():
            stack.enter_context(trainer)
            for _ in range(settings.windows // settings.batch_size + 1):  # the first epoch fills the caches
                trainer()
        rows = compare(interleave(trainers, settings.rounds, sample_seconds=1e-3), FULL)
        computed, memory, disk = (trainers[name].losses for name in list(FORMS)[1:])
        assert computed == memory == disk, "losses from a cache are not those computed"
        return [{"family": family, **row, "losses": len(computed), "speedup": _speedup(row)} for row in rows]


def _speedup(row: Mapping[str, float]) -> dict[str, float]:
    return {"median": 1 / row["ratio"], "low": 1 / row["ratio_high"], "high": 1 / row["ratio_low"]}


def time_embedding(settings: Settings) -> list[dict[str, Any]]:
    """The U-net's x0 looked up again, beside handing it over from memory: which of the two the cache should do."""
    width = settings.families["parameter_golf"]["model_dim"]
    table_VxD = jax.random.normal(jax.random.key(0), (1024, width))
    tokens = np.random.default_rng(0).integers(0, 1024, (settings.batch_size, settings.seq_len)).astype(np.int32)
    lookup = jax.jit(lambda tokens: rms_norm(jnp.take(table_VxD, tokens, axis=0), 1e-6))
    kept, windows = np.zeros((settings.windows, settings.seq_len, width), np.float32), np.arange(settings.batch_size)
    calls: dict[str, Callable[[], Any]] = {
        "looked up again": lambda: jax.block_until_ready(lookup(tokens)),
        "from memory": lambda: jax.block_until_ready(jax.device_put(np.take(kept, windows, axis=0))),
    }
    return compare(interleave(calls, settings.rounds), "from memory")


def write_tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Markdown by name of the table."""
    return {
        "steps": _steps(found["steps"], found["target"]),
        "embedding": table(
            [
                {"x0": row["name"], "median, ms": f"{row['ms_median']:.2f}", "times": f"{row['ratio']:.2f}"}
                for row in found["embedding"]
            ]
        ),
        "machine": pages.sentence(found),
    }


def _steps(rows: Sequence[Mapping[str, Any]], target: float) -> str:
    lines = []
    for row in rows:
        speedup = row["speedup"]
        judged = row["name"] in ("from memory", "from disk")
        lines.append(
            {
                "model": row["family"],
                "first 75 % of the blocks": row["name"] if row["name"] != FULL else "train, as everything does",
                "step, ms": f"{row['ms_median']:.1f}",
                "steps per second, times full training": f"{speedup['median']:.2f} "
                f"({speedup['low']:.2f} to {speedup['high']:.2f})",
                "target": f"{target:.0f}: {verdict(speedup['median'] >= target)}" if judged else "",
            }
        )
    return table(lines)


if __name__ == "__main__":
    command.run(RESULTS, PAGES, lambda quick: measure(QUICK if quick else Settings()), write_tables)
