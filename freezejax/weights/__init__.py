"""Weights that are never stored: random matrices regenerated from one root seed inside jit."""

from freezejax.weights.random_map import RandomMap
from freezejax.weights.recipes import RECIPES, Recipe
from freezejax.weights.seeded import (
    MapWeight,
    as_matrices,
    check_seeds_frozen,
    count_seeded,
    hold,
    map_weights,
    release,
    with_shardings,
)

__all__ = [
    "RECIPES",
    "MapWeight",
    "RandomMap",
    "Recipe",
    "as_matrices",
    "check_seeds_frozen",
    "count_seeded",
    "hold",
    "map_weights",
    "release",
    "with_shardings",
]
