"""freezejax: which weights of a model need training, from which step to which, at what cost."""

from freezejax.describe import describe
from freezejax.errors import UserError
from freezejax.masks import trainable_mask
from freezejax.optimizer import freeze, migrate, scheduled_freeze
from freezejax.partition import apply_updates, combine, partition, value_and_grad
from freezejax.schedules import FreezeSchedule, Phase, by_groups, layer_by_layer
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
    "layer_by_layer",
    "migrate",
    "partition",
    "scheduled_freeze",
    "trainable_mask",
    "value_and_grad",
]
