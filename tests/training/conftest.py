"""A model of a few thousand weights, a text it can learn, and runs of the real loop on both."""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from freezejax import FreezeSchedule, models
from freezejax.training.batches import TokenBatches
from freezejax.training.config import TrainConfig
from freezejax.training.interrupts import Stopped, StopSignal
from freezejax.training.loop import TrainResult, train
from freezejax.training.metrics import Sink
from freezejax.training.objectives.language_modelling import LanguageModelling

EVERYTHING = [(".*", True)]
GATE_UP = [(r"blocks/\d+/mlp/(gate|up)/kernel", False), *EVERYTHING]


@pytest.fixture(scope="package", autouse=True)
def jax_as_a_user_has_it(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """optax's Adam adds a float to an int32 count; a resumed run finds its programs compiled."""
    cache = str(tmp_path_factory.mktemp("xla"))
    settings = {
        "jax_numpy_dtype_promotion": "standard",
        "jax_compilation_cache_dir": cache,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="package")
def tokens() -> np.ndarray:
    """A text over 61 tokens with a short period and some noise, uint16 [3000]."""
    noise = np.random.default_rng(0).integers(0, 61, 3000)
    return np.where(noise % 4 == 0, noise, np.arange(3000) * 7 % 61).astype(np.uint16)


@pytest.fixture(scope="package")
def build() -> Callable[..., models.Model]:
    def make(**config: Any) -> models.Model:
        sizes = {"vocab_size": 61, "num_layers": 1, "model_dim": 16, "num_heads": 1}
        return models.build("geglu", **{**sizes, **config})

    return make


class Recorder:
    """Keeps records, and asks for a stop so that the loop stops right after `stop_at` updates."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop, self.stop_at = StopSignal(), stop_at
        self.records: list[dict[str, Any]] = []
        self.begun: list[int] = []

    def begin(self, step: int) -> None:
        self.begun.append(step)
        self._ask_after(step)

    def write(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        if "loss" in record:
            self._ask_after(record["step"])

    def _ask_after(self, step: int) -> None:
        if step + 1 == self.stop_at:
            self.stop.received = signal.SIGTERM

    def close(self) -> None:
        pass

    def losses(self) -> list[float]:
        return [record["loss"] for record in self.records if "loss" in record]


class Evaluated(LanguageModelling):
    """Language modelling whose evaluation is any function to figures, or None."""

    def evaluate(self, params: Any) -> Mapping[str, float]:
        return {} if self.score is None else self.score(params)


@pytest.fixture(scope="package")
def run(build: Callable[..., models.Model], tokens: np.ndarray) -> Callable[..., tuple[TrainResult | None, Recorder]]:
    """`run(directory, entries, stop_at=, evaluate=, params=, sinks=, model=, **train fields) -> (result, recorder)`.

    The result is None where the run was stopped.
    """

    def go(
        directory: Path,
        entries: list[Any],
        *,
        stop_at: int | None = None,
        evaluate: Any = None,
        params: Any = None,
        sinks: Sequence[Sink] = (),
        model: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> tuple[TrainResult | None, Recorder]:
        config = TrainConfig.from_mapping({"steps": 12, "batch_size": 4, "seq_len": 16, "log_every": 1, **fields})
        recorder = Recorder(stop_at)
        built = build(**(model or {}))
        objective = Evaluated(built, config.compute_dtype, evaluate)
        arguments = (built, objective, TokenBatches(tokens, config), config, FreezeSchedule(entries), directory)
        try:
            found = train(*arguments, params=params, sinks=[*sinks, recorder], stop=recorder.stop)
        except Stopped:
            return None, recorder
        return found, recorder

    return go


@pytest.fixture(scope="package")
def entries() -> dict[str, list[Any]]:
    """Schedules by name, over runs of 12 steps."""
    attention = [(r"blocks/\d+/attn/.*", False), *EVERYTHING]
    return {
        "never": [(0, EVERYTHING)],
        "start": [(0, GATE_UP)],
        "later": [(0, EVERYTHING), (4, GATE_UP)],
        "thaw": [(0, EVERYTHING), (4, GATE_UP), (7, EVERYTHING), (9, attention)],
        "all frozen": [(0, EVERYTHING), (6, [(".*", False)])],
    }
