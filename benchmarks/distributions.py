"""Figures of the six distributions: moments, and how far from orthogonal a map's vectors are."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from freezejax import RandomMap
from freezejax.weights import RECIPES

# A power of two above, and not: the two cases of the Hadamard recipe.
SHAPES = ((512, 2048), (192, 384))


def measure(names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per distribution, from one map of each shape, base seed 0, scale "none".

    `mean`, `std` and `kurtosis` are those of the [512, 2048] map, `exact_kurtosis` that of the recipe.
    `cosine_rms` and `cosine_max` are of the cosines between different rows, vectors along the larger side.
    """
    return [_row(name) for name in names]


def _row(name: str) -> dict[str, Any]:
    drawn = [np.asarray(_draw(name, shape), np.float64) for shape in SHAPES]
    w = drawn[0]
    row = {
        "name": name,
        "mean": float(w.mean()),
        "std": float(w.std()),
        "kurtosis": float(np.mean(w**4) / np.mean(w**2) ** 2),
        "exact_kurtosis": RECIPES[name].kurtosis,
        "levels": len(np.unique(w)),
        "portable": RECIPES[name].portable,
    }
    for shape, matrix in zip(SHAPES, drawn, strict=True):
        found = cosines(matrix)
        row["x".join(map(str, shape))] = {
            "cosine_rms": float(np.sqrt(np.mean(found**2))),
            "cosine_max": float(np.abs(found).max()),
        }
    return row


def cosines(vectors: np.ndarray) -> np.ndarray:
    """Cosines between every two different rows.

    >>> cosines(np.array([[2.0, 0.0], [0.0, 1.0]]))
    array([0., 0.])
    """
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return (unit @ unit.T)[~np.eye(len(unit), dtype=bool)]


def _draw(name: str, shape: tuple[int, int]) -> jax.Array:
    return jax.jit(RandomMap(shape, name, scale="none", name="up/kernel").materialize)(jax.random.key(0))
