"""Every way a weight can exist besides a plain array: one file per kind, one line in `KINDS`."""

from freezejax.roles import Role, Weight, checkpoint_mask
from freezejax.weights.adapter import Adapter, merge, unmerge
from freezejax.weights.crystal import CrystalWeight
from freezejax.weights.dora import DoraWeight
from freezejax.weights.gain import GainWeight
from freezejax.weights.kinds import KINDS, Rules, Site, attach, recast
from freezejax.weights.linear import linear, matmul, matrix
from freezejax.weights.lora import LoraWeight
from freezejax.weights.lowbit import LowBitWeight
from freezejax.weights.randlora import RandLoraWeight
from freezejax.weights.random_map import RandomMap
from freezejax.weights.recipes import RECIPES, Recipe
from freezejax.weights.scalar import ScalarWeight, betas_of
from freezejax.weights.scale_shift import ScaleShiftWeight
from freezejax.weights.seeded import MapWeight, as_matrices, count_seeded, draw_maps, drop_maps, maps_of
from freezejax.weights.shared import share
from freezejax.weights.stack import Stack, each
from freezejax.weights.supermask import SupermaskWeight
from freezejax.weights.vera import VeraWeight

KINDS.update(
    map=MapWeight.make,
    lowbit=LowBitWeight.make,
    crystal=CrystalWeight.make,
    shared=share,
    gain=GainWeight.make,
    scalar=ScalarWeight.make,
    scale_shift=ScaleShiftWeight.make,
    lora=LoraWeight.make,
    dora=DoraWeight.make,
    vera=VeraWeight.make,
    randlora=RandLoraWeight.make,
    supermask=SupermaskWeight.make,
    each=each,
)

__all__ = [
    "KINDS",
    "RECIPES",
    "Adapter",
    "CrystalWeight",
    "DoraWeight",
    "GainWeight",
    "LoraWeight",
    "LowBitWeight",
    "MapWeight",
    "RandLoraWeight",
    "RandomMap",
    "Recipe",
    "Role",
    "Rules",
    "ScalarWeight",
    "ScaleShiftWeight",
    "Site",
    "Stack",
    "SupermaskWeight",
    "VeraWeight",
    "Weight",
    "as_matrices",
    "attach",
    "betas_of",
    "checkpoint_mask",
    "count_seeded",
    "draw_maps",
    "drop_maps",
    "linear",
    "maps_of",
    "matmul",
    "matrix",
    "merge",
    "recast",
    "unmerge",
]
