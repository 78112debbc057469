"""Parameters of other libraries have paths that a person would guess."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from flax.core import freeze as freeze_dict

import freezejax
from freezejax.paths import leaf_paths


class NnxMlp(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(2, 3, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs)])


class LinenMlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(jnp.tanh(nn.Dense(3, name="up")(x)))


def nnx_dict():
    return nnx.to_pure_dict(nnx.state(NnxMlp(nnx.Rngs(0)), nnx.Param))


def linen_params():
    return LinenMlp().init(jax.random.key(0), jnp.ones((1, 2)))


def equinox_arrays():
    return eqx.filter(eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0)), eqx.is_array)


CASES = {
    "nnx, pure dict": (nnx_dict, ["layers/0/bias", "layers/0/kernel", "up/bias", "up/kernel"]),
    "nnx, State": (
        lambda: nnx.state(NnxMlp(nnx.Rngs(0)), nnx.Param),
        ["layers/0/bias/value", "layers/0/kernel/value", "up/bias/value", "up/kernel/value"],
    ),
    "linen": (
        linen_params,
        ["params/Dense_0/bias", "params/Dense_0/kernel", "params/up/bias", "params/up/kernel"],
    ),
    "linen, FrozenDict": (
        lambda: freeze_dict(linen_params()),
        ["params/Dense_0/bias", "params/Dense_0/kernel", "params/up/bias", "params/up/kernel"],
    ),
    "equinox": (equinox_arrays, ["layers/0/bias", "layers/0/weight", "layers/1/bias", "layers/1/weight"]),
    "dict": (lambda: {"blocks": {3: {"gate": jnp.ones(1)}}}, ["blocks/3/gate"]),
}


@pytest.mark.parametrize("name", CASES)
def test_leaf_paths(name):
    make, expected = CASES[name]
    assert sorted(leaf_paths(make())) == expected


@pytest.mark.parametrize("name", CASES)
def test_mask_partition_and_combine_keep_the_container(name):
    params = CASES[name][0]()
    first = sorted(leaf_paths(params))[0]
    mask = freezejax.trainable_mask(params, [(first, False), (".*", True)])
    assert type(mask) is type(params)
    whole = freezejax.combine(*freezejax.partition(params, mask))
    assert jax.tree.structure(whole) == jax.tree.structure(params)
    assert sum(not trains for trains in jax.tree.leaves(mask)) == 1
