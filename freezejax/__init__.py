"""freezejax: which weights of a model need training, from which step to which, at what cost."""

import importlib
from typing import Any

from freezejax.describe import describe
from freezejax.errors import UserError
from freezejax.masks import trainable_mask
from freezejax.modules import frozen_modules
from freezejax.optimizer import freeze, migrate, scheduled_freeze
from freezejax.partition import apply_updates, combine, partition, value_and_grad
from freezejax.rows import join_rows, rows
from freezejax.schedules import FreezeSchedule, Phase, by_groups, layer_by_layer
from freezejax.selection import matches, module_types, only
from freezejax.ties import tie, untie
from freezejax.version import __version__ as __version__
from freezejax.weights import RandomMap

__all__ = [
    "FreezeSchedule",
    "Phase",
    "RandomMap",
    "UserError",
    "apply_updates",
    "by_groups",
    "combine",
    "describe",
    "freeze",
    "frozen_modules",
    "join_rows",
    "layer_by_layer",
    "matches",
    "migrate",
    "module_types",
    "only",
    "partition",
    "rows",
    "scheduled_freeze",
    "tie",
    "trainable_mask",
    "untie",
    "value_and_grad",
]


def __getattr__(name: str) -> Any:
    """`freezejax.artifact` and `freezejax.recommend` by their names alone: they need what the core does not."""
    if name == "artifact":
        return importlib.import_module("freezejax.artifact")
    if name == "recommend":
        return importlib.import_module("freezejax.cost.recommendation").recommend
    raise AttributeError(f"module 'freezejax' has no attribute {name!r}")
