"""Small models whose every leaf matters: parameters far from their initial zeros and ones."""

import jax
import numpy as np
from freezejax import models
from freezejax.paths import map_with_paths, named_key

GEGLU = {"vocab_size": 13, "num_layers": 2, "model_dim": 24, "num_heads": 2, "rope_dims": 4}
GOLF = {"vocab_size": 13, "num_layers": 3, "model_dim": 24, "num_heads": 4, "num_kv_heads": 2}
SMALL = {"geglu": GEGLU, "parameter_golf": GOLF}


def small(family, **changes):
    """A tiny model and random parameters of visible size."""
    model = models.build(family, **{**SMALL[family], **changes})
    params = model.init(jax.random.key(0))
    noise = map_with_paths(
        lambda path, leaf: leaf + 0.3 * jax.random.normal(named_key(jax.random.key(1), path), leaf.shape),
        params,
    )
    return model, noise


def tokens(batch=2, length=10, vocab=13, seed=0):
    return np.random.default_rng(seed).integers(0, vocab, (batch, length), dtype=np.int32)
