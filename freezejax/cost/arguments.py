"""Bytes per device, exactly, from shapes and mask: parameters, gradients, optimizer state, arguments."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from freezejax.cost.layout import MeshShape
from freezejax.paths import PyTree, leaf_paths
from freezejax.training.config import TrainConfig
from freezejax.weights import maps_of

_COUNT = 4  # bytes of a step count; AdamW and the learning rate each have one
_COEFFICIENTS = 12  # bytes of the three coefficients that Muon's state holds


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter in one phase, as one device holds it.

    >>> Leaf("w", (2, 3), 4, True, False, ways=2).bytes
    12
    """

    path: str
    shape: tuple[int, ...]
    itemsize: int
    trains: bool
    by_muon: bool  # its optimizer state is one moment, not two
    ways: int  # devices it is cut over

    @property
    def size(self) -> int:
        """Elements on one device."""
        return math.prod(self.shape) // self.ways

    @property
    def bytes(self) -> int:
        """Bytes on one device."""
        return self.size * self.itemsize


def leaves_of(params: PyTree, trains: Mapping[str, bool], config: TrainConfig, mesh: MeshShape) -> list[Leaf]:
    """Every parameter of a model in one phase.

    >>> config = TrainConfig(steps=1, batch_size=1, seq_len=8)
    >>> [leaf.size for leaf in leaves_of({"w": np.zeros((2, 3))}, {"w": True}, config, MeshShape())]
    [6]
    """
    muon = config.optimizer.name == "muon"
    return [
        Leaf(
            path,
            tuple(leaf.shape),
            np.dtype(leaf.dtype).itemsize,
            trains[path],
            muon and re.fullmatch(r"(.*/)?blocks/.*/kernel(/base)?", path) is not None,
            mesh.ways(path, tuple(leaf.shape)),
        )
        for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
    ]


def optimizer_bytes(leaves: list[Leaf], config: TrainConfig) -> int:
    """Bytes of the optimizer state and of the EMA: two moments per trainable weight, one where Muon trains it.

    >>> config = TrainConfig(steps=1, batch_size=1, seq_len=8)
    >>> optimizer_bytes([Leaf("w", (2, 3), 4, True, False, 1), Leaf("b", (3,), 4, False, False, 1)], config)
    56
    """
    moments = sum(leaf.bytes * (1 if leaf.by_muon else 2) for leaf in leaves if leaf.trains)
    average = sum(leaf.bytes for leaf in leaves if leaf.trains) if config.ema_decay else 0
    muon = config.optimizer.name == "muon"
    return moments + average + (4 * _COUNT + _COEFFICIENTS if muon else 2 * _COUNT)


def argument_bytes(model_config: Any, params: PyTree, leaves: list[Leaf], config: TrainConfig, mesh: MeshShape) -> int:
    """Bytes of the arguments of the compiled step: parameters, optimizer state, batch, keys, and stored maps.

    What the step does not read is no argument of the program: without dropout there is no key; of stored maps the
    root is not read.
    """
    total = sum(leaf.bytes for leaf in leaves) + optimizer_bytes(leaves, config) + 4  # the index of the step
    total += 2 * 4 * config.batch_size * config.seq_len // mesh.batch_ways  # int32 inputs and targets
    if model_config.dropout:
        total += 8  # the root key
    if config.draw_maps == "once":
        for weight in maps_of(params):
            total += 4 * math.prod(weight.map.shape) // mesh.ways(f"{weight.map.name}/levels", weight.map.shape) - 8
    return total
