"""A training step that runs: the model of the step benchmarks, what trains of it, and where it stands."""
# ruff: noqa: D107 - what a class is stands in its docstring

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from freezejax import freeze, models, partition, trainable_mask
from freezejax.masks import Rule
from freezejax.training.config import OptimizerConfig, TrainConfig
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.optimizers import make_optimizer
from freezejax.training.programs.compiler import compiler_options
from freezejax.training.step import StepState, make_step

EVERYTHING: list[Rule] = [(".*", True)]
GATE_UP: list[Rule] = [(r"blocks/\d+/mlp/(gate|up)/kernel", False), *EVERYTHING]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The model and its batch. Defaults: the sizes that the targets are about."""

    num_layers: int = 6
    model_dim: int = 192
    num_heads: int = 6
    vocab_size: int = 256
    batch_size: int = 8
    seq_len: int = 256

    def model(self, **changes: Any) -> models.Model:
        """The GEGLU model of these sizes."""
        fields = ("num_layers", "model_dim", "num_heads", "vocab_size")
        return models.build("geglu", **{name: getattr(self, name) for name in fields}, **changes)

    @property
    def config(self) -> TrainConfig:
        """AdamW with decay 0.1 at a constant rate, clip at norm 1."""
        optimizer = OptimizerConfig(schedule="constant")
        return TrainConfig(steps=1, batch_size=self.batch_size, seq_len=self.seq_len, optimizer=optimizer)

    def batches(self, count: int = 4) -> dict[str, np.ndarray]:
        """Random `inputs` and `targets`, int32 [count, B, T]; the times do not depend on the text."""
        shape = (2, count, self.batch_size, self.seq_len)
        inputs, targets = np.random.default_rng(0).integers(0, self.vocab_size, shape, dtype=np.int32)
        return {"inputs": inputs, "targets": targets}


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """The clip and AdamW of these benchmarks, without the freezing."""
    return make_optimizer(config.optimizer, lambda count: jnp.ones([]))


class RunningStep:
    """A compiled step `(state, *fixed, index, batch) -> (state, metrics)` and its moving parts.

    Args:
      step: the pure step; its metrics hold `loss`.
      state: what it changes; copied here, and donated.
      fixed: what it reads.
      sizes: of the batches.
    """

    def __init__(self, step: Callable[..., Any], state: Any, fixed: Sequence[Any], sizes: Sizes) -> None:
        self.state, self.fixed, self.index = jax.tree.map(jnp.copy, state), fixed, 0
        stacked = sizes.batches()
        self.batches = [jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), stacked) for i in range(len(stacked["inputs"]))]
        arguments = (self.state, *fixed, np.int32(0), self.batches[0])
        self.program = jax.jit(step, donate_argnums=0).lower(*arguments).compile(compiler_options())

    def run(self, steps: int) -> list[float]:
        """The losses of so many further steps, fetched at the end."""
        losses = []
        for _ in range(steps):
            batch = self.batches[self.index % len(self.batches)]
            self.state, metrics = self.program(self.state, *self.fixed, np.int32(self.index), batch)
            self.index += 1
            losses.append(metrics["loss"])
        jax.block_until_ready(self.state)
        return [float(loss) for loss in losses]


def phase(sizes: Sizes, rules: Sequence[Rule] = EVERYTHING, **model: Any) -> RunningStep:
    """The step of the training loop: what the rules freeze is never differentiated.

    Args:
      sizes: model and batch.
      rules: what trains, see `trainable_mask`.
      model: further fields of the model, such as `weights`.
    """
    built, config = sizes.model(**model), sizes.config
    params = built.init(jax.random.key(0))
    mask = trainable_mask(params, rules)
    tx = freeze(optimizer(config), mask)
    trainable, frozen = partition(params, mask)
    state = StepState(trainable, tx.init(params), None)
    return RunningStep(
        make_step(LanguageModelling(built, config.compute_dtype), tx), state, (frozen, jax.random.key(0)), sizes
    )
