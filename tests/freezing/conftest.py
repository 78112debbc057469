"""The optimizers every law is tried with."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import optax
import pytest
from optax import contrib


class Optimizer(NamedTuple):
    name: str
    make: Callable[[], optax.GradientTransformation]


def _clip_before() -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.01, weight_decay=0.1))


def _clip_after_decay() -> optax.GradientTransformation:
    decayed = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.5))
    return optax.chain(decayed, optax.clip_by_global_norm(0.1), optax.scale(-0.1))


def _ema() -> optax.GradientTransformation:
    return optax.chain(optax.ema(0.9), optax.add_decayed_weights(0.1), optax.scale(-0.1))


def _multi_steps() -> optax.GradientTransformation:
    return optax.MultiSteps(optax.adamw(0.05, weight_decay=0.1), 3).gradient_transformation()


def _decay_matrices_only() -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.05, 2, 12)
    return optax.adamw(rate, weight_decay=0.5, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree))


OPTIMIZERS = [
    Optimizer("sgd momentum", lambda: optax.sgd(0.1, momentum=0.9)),
    Optimizer("sgd nesterov", lambda: optax.sgd(0.1, momentum=0.9, nesterov=True)),
    Optimizer("adamw", lambda: optax.adamw(0.05, weight_decay=0.1)),
    Optimizer("adamw scheduled, masked decay", _decay_matrices_only),
    Optimizer("muon", lambda: contrib.muon(0.02, weight_decay=0.1)),
    Optimizer("lion", lambda: optax.lion(0.01, weight_decay=0.1)),
    Optimizer("adafactor", lambda: optax.adafactor(0.05, min_dim_size_to_factor=2, weight_decay_rate=0.1)),
    Optimizer("clip before adamw", _clip_before),
    Optimizer("clip after decay", _clip_after_decay),
    Optimizer("ema", _ema),
    Optimizer("MultiSteps", _multi_steps),
    # Its state hangs a list of arrays below each parameter's path.
    Optimizer("sm3", lambda: optax.sm3(0.05)),
]


@pytest.fixture(params=OPTIMIZERS, ids=[optimizer.name for optimizer in OPTIMIZERS], scope="session")
def optimizer(request: pytest.FixtureRequest) -> Optimizer:
    return request.param


@pytest.fixture(scope="module")
def optax_promotion() -> Iterator[None]:
    """optax's Adam adds a float to an int32 count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield
