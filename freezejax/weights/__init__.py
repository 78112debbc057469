"""Every way a weight can exist besides a plain array: one file per kind, one line in `KINDS`."""

from freezejax.roles import Role, Weight, checkpoint_mask
from freezejax.weights.gain import GainWeight
from freezejax.weights.kinds import KINDS, Rules, Site, attach
from freezejax.weights.linear import linear, matmul, matrix
from freezejax.weights.lora import LoraWeight
from freezejax.weights.random_map import RandomMap
from freezejax.weights.recipes import RECIPES, Recipe
from freezejax.weights.seeded import MapWeight, as_matrices, count_seeded, draw_maps, drop_maps, maps_of

KINDS.update(map=MapWeight.make, lora=LoraWeight.make, gain=GainWeight.make)

__all__ = [
    "KINDS",
    "RECIPES",
    "GainWeight",
    "LoraWeight",
    "MapWeight",
    "RandomMap",
    "Recipe",
    "Role",
    "Rules",
    "Site",
    "Weight",
    "as_matrices",
    "attach",
    "checkpoint_mask",
    "count_seeded",
    "draw_maps",
    "drop_maps",
    "linear",
    "maps_of",
    "matmul",
    "matrix",
]
