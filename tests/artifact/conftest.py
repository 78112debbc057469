"""Small models of both families, plain and with maps and adapters, and files made of them."""

import jax
import numpy as np
import pytest

from freezejax import models
from freezejax.paths import map_with_paths, stable_hash

GEGLU = {"family": "geglu", "vocab_size": 70, "num_layers": 2, "model_dim": 64, "num_heads": 2}
GOLF = {"family": "parameter_golf", "vocab_size": 70, "num_layers": 3, "model_dim": 64, "num_heads": 4}
MODELS = {
    "geglu": GEGLU,
    "parameter_golf": {**GOLF, "num_kv_heads": 2},
    "maps": {
        **GEGLU,
        "weights": [
            {"pattern": ".*/(gate|up)/kernel", "kind": "map", "distribution": "rademacher"},
            {"pattern": ".*/(gate|up)/kernel", "kind": "gain"},
            {"pattern": ".*/(qkv|gate)/kernel", "kind": "lora", "rank": 32, "alpha": 8.0},
        ],
    },
}


def moved(path, leaf):
    """Away from the initial zeros and ones, so that every leaf matters; seeds stay."""
    if leaf.dtype == np.uint32:
        return leaf
    noise = np.random.default_rng(stable_hash(path)).normal(size=leaf.shape)
    return jax.numpy.asarray(leaf + 0.02 * noise, leaf.dtype)


@pytest.fixture(scope="session")
def trained():
    """`trained(name) -> (model config, params)`."""
    made = {}

    def make(name):
        if name not in made:
            params = jax.jit(models.build(**MODELS[name]).init)(jax.random.key(0), jax.random.key(7))
            made[name] = (MODELS[name], map_with_paths(moved, params))
        return made[name]

    return make


@pytest.fixture(scope="session")
def tokens():
    """int32 [2, 9] below 70."""
    return np.random.default_rng(0).integers(0, 70, (2, 9), dtype=np.int32)
