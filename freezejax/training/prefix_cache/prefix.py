"""A frozen prefix: embedding and first blocks that a phase does not train, run apart from the step.

With `train.prefix_cache` a phase whose first k blocks are frozen, with all that they read, is two programs:
`prefix(frozen, inputs) -> batch["prefix"]` and a step that begins at block k. There is no dropout in the prefix then,
so what it makes of a window never changes during the phase and can be kept.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from freezejax.errors import UserError
from freezejax.models import Model
from freezejax.partition import combine, partition
from freezejax.paths import PyTree
from freezejax.training.config import TrainConfig
from freezejax.weights import draw_maps


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrefixOutput:
    """What the first `blocks` blocks made of a batch; the rest of the model runs on it."""

    blocks: int = dataclasses.field(metadata={"static": True})
    hidden: PyTree  # see `Model.prefix`


def frozen_prefix(model: Model, config: TrainConfig, mask: PyTree) -> int:
    """Number of blocks that run apart from the step in a phase with this mask; 0 = everything is in the step."""
    return 0 if config.prefix_cache == "off" else model.frozen_blocks(mask)


def check_prefix(config: TrainConfig, mesh: Mesh | None, batch: dict[str, Any]) -> None:
    """Refuses a prefix apart from the step on a mesh, and for batches that have no tokens to run it on."""
    if config.prefix_cache == "off":
        return
    field = f"train.prefix_cache={config.prefix_cache!r}"
    if mesh is not None:
        devices = f"is for one device, and this run has {mesh.size}"
        raise UserError(f"{field} {devices}: use 'off', or let one device be visible")
    if "inputs" not in batch:
        raise UserError(f"{field} needs batches with an entry 'inputs': use 'off'")


def make_prefix(
    model: Model, config: TrainConfig, abstract_params: PyTree, mask: PyTree
) -> Callable[..., PrefixOutput] | None:
    """Pure `prefix(frozen, inputs_BxT)`: what the frozen prefix makes of a batch; None where no block runs apart.

    It runs in the microbatches of the step, so it needs no more memory than the step. `frozen` is the frozen half
    of the parameters; were a leaf of the other half read, the result would be NaN.
    """
    blocks, parts = frozen_prefix(model, config, mask), config.accumulation
    if not blocks:
        return None
    absent = partition(abstract_params, mask)[0]

    def prefix(frozen: PyTree, inputs: jax.Array) -> PrefixOutput:
        if config.draw_maps == "per_step":
            frozen = draw_maps(frozen)
        params = combine(jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, leaf.dtype), absent), frozen)

        def part(inputs_BxT: jax.Array) -> PyTree:
            return model.prefix(params, inputs_BxT, blocks=blocks, compute_dtype=jnp.dtype(config.compute_dtype))

        if parts == 1:
            return PrefixOutput(blocks, part(inputs))
        hidden = jax.lax.map(part, inputs.reshape(parts, -1, inputs.shape[1]))
        return PrefixOutput(blocks, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), hidden))

    return prefix
