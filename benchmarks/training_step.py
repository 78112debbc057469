"""A training step of a language model with random maps, from shapes alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from freezejax import freeze, models, partition, trainable_mask
from freezejax.training.config import TrainConfig
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.optimizers import make_optimizer
from freezejax.training.step import StepState, make_step
from freezejax.weights import count_seeded, draw_maps


def abstract_step(
    pattern: str, *, draw: str = "per_layer", layers: int = 2, batch_size: int = 4, seq_len: int = 256, **model: Any
) -> tuple[Callable[..., Any], tuple[Any, ...], int]:
    """`(step, its abstract arguments, weights that are maps)` of a GEGLU model whose kernels `pattern` are maps.

    Args:
      pattern: regular expression of kernel paths.
      draw: "once", "per_step" or "per_layer", as in `TrainConfig.draw_maps`.
      layers: blocks of the model.
      batch_size: sequences.
      seq_len: tokens of each.
      model: further fields of the model's config.
    """
    weights = [{"pattern": pattern, "kind": "map", "distribution": "normal"}]
    built = models.build("geglu", num_layers=layers, weights=weights, **model)
    config = TrainConfig(steps=1, batch_size=batch_size, seq_len=seq_len, draw_maps=draw)
    params = jax.eval_shape(built.init, jax.random.key(0))
    mask = trainable_mask(params, [(".*", True)])
    tx = freeze(make_optimizer(config.optimizer, lambda count: jnp.ones([])), mask)
    trainable, frozen = partition(params, mask)
    state = StepState(trainable, jax.eval_shape(tx.init, params), None)
    if draw == "once":
        frozen = jax.eval_shape(draw_maps, frozen)
    sequence = jax.ShapeDtypeStruct((batch_size, seq_len), jnp.int32)
    arguments = (
        state,
        frozen,
        jax.random.key(0),
        jax.ShapeDtypeStruct((), jnp.int32),
        {"inputs": sequence, "targets": sequence},
    )
    step = make_step(LanguageModelling(built, config.compute_dtype), tx, draw_once=draw == "per_step")
    return step, arguments, count_seeded(params)
