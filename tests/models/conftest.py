"""Small models whose every leaf matters: parameters moved away from their initial zeros and ones."""

import functools

import jax
import numpy as np
import pytest

from freezejax import models
from freezejax.paths import map_with_paths, named_key

SMALL = {
    "geglu": {"vocab_size": 13, "num_layers": 2, "model_dim": 24, "num_heads": 2, "rope_dims": 4},
    "parameter_golf": {"vocab_size": 13, "num_layers": 3, "model_dim": 24, "num_heads": 4, "num_kv_heads": 2},
    "gpt2": {"vocab_size": 13, "num_layers": 2, "model_dim": 24, "num_heads": 2, "positions": 64},
    "llama": {"vocab_size": 13, "num_layers": 2, "model_dim": 24, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
    | {"mlp_mult": 1.5, "tied": False},
    "nemotron_h": {
        "vocab_size": 13,
        "num_layers": 5,
        "pattern": "ME*-M",
        "model_dim": 24,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
    }
    | {"mamba_heads": 4, "mamba_head_dim": 6, "mamba_groups": 2, "state_dim": 5, "chunk": 4, "mlp_width": 32}
    | {"experts": 6, "expert_choices": 2, "expert_width": 10, "shared_expert_width": 12, "share_scale": 1.5},
}


def _perturbed(path, leaf):
    return leaf + 0.3 * jax.random.normal(named_key(jax.random.key(1), path), leaf.shape)


@functools.cache
def _make(family, changes):
    model = models.build(family, **{**SMALL[family], **dict(changes)})
    params = map_with_paths(_perturbed, model.init(jax.random.key(0)))
    return model._replace(apply=jax.jit(model.apply, static_argnames="compute_dtype")), params


@pytest.fixture(scope="session")
def small():
    """`small(family, **changes) -> (model, params)`; `apply` is jitted and shared between tests."""
    return lambda family, **changes: _make(family, tuple(changes.items()))


@pytest.fixture(scope="session")
def tokens():
    """int32 [2, 10] below 13."""
    return np.random.default_rng(0).integers(0, 13, (2, 10), dtype=np.int32)


@pytest.fixture(params=sorted(SMALL))
def family(request):
    """Every model family in turn."""
    return request.param


@pytest.fixture(params=["geglu", "parameter_golf"])
def own_family(request):
    """The families of the studies, which share names and field names."""
    return request.param
