"""Run by test_sharded.py in a process of its own: maps on 8 simulated devices. Prints what it found as JSON."""

import dataclasses
import hashlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from freezejax import RandomMap
from freezejax.weights import MapWeight, draw_maps, recipes
from tests.weights.programs import collectives, largest_array

ALIGNED, ODD = (256, 512), (96, 80)  # ODD: a word's 32 signs lie on two devices
SEED, PATH = 3, "blocks/0/mlp/up/kernel"
COLUMNS, ROWS, BOTH = P(None, "tensor"), P("tensor", None), P("fsdp", "tensor")
CASES = [  # mesh (data, fsdp, tensor), shape, specs, distributions
    ((2, 2, 2), ALIGNED, (COLUMNS, ROWS, BOTH), ("uniform", "rademacher", "hadamard")),
    ((2, 2, 2), ODD, (COLUMNS, P(("data", "fsdp"), "tensor"), P()), ("rademacher", "normal", "hadamard")),
    ((1, 4, 2), ODD, (ROWS, BOTH), ("rademacher",)),
    ((8, 1, 1), ODD, (P("data"), P(None, "data")), ("rademacher", "normal")),
]


def make_mesh(sizes):
    return jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def replicated_key(mesh, seed=SEED, impl=None):
    return jax.device_put(jax.random.key(seed, impl=impl), NamedSharding(mesh, P()))


def facts(hlo, shape):
    return {"collectives": collectives(hlo), "largest": largest_array(hlo), "size": math.prod(shape)}


def materialize_everything(sizes, shape, specs, distributions):
    """Every distribution under every spec, in one program."""
    mesh = make_mesh(sizes)

    def draw(key):
        return {
            f"{name} {spec}": RandomMap(shape, name, name=PATH).materialize(key, NamedSharding(mesh, spec))
            for spec in specs
            for name in distributions
        }

    key = replicated_key(mesh)
    program = jax.jit(draw).lower(key).compile()
    drawn = program(key)
    for name, w in drawn.items():
        expected = math.prod(shape) // (1 if name.endswith("P()") else 2)
        assert max(shard.data.size for shard in w.addressable_shards) <= expected, name
    hashes = {name: hashlib.sha256(np.asarray(w).tobytes()).hexdigest() for name, w in drawn.items()}
    return {**facts(program.as_text(), shape), "sha256": hashes}


def train_through_a_map(spec, distribution):
    """Loss and gradients of two layers, a map and a trained one, on a batch split over data and fsdp.

    `down` is not split over fsdp: where it is, the partitioner of jax 0.12.0 gives wrong sums here, with a stored
    matrix as with a map (openxla/xla issue 40034 looks alike).
    """
    mesh = make_mesh((2, 2, 2))
    place = lambda tree, *axes: jax.device_put(tree, NamedSharding(mesh, P(*axes)))  # noqa: E731
    weight = MapWeight.create(RandomMap(ALIGNED, distribution, name=PATH), jax.random.key(SEED))
    down, x = jnp.ones((512, 48)) / 512, jnp.linspace(-1, 1, 20 * 4 * 256).reshape(20, 4, 256)

    def loss(down, x, weight):
        return jnp.mean(jnp.square(1 + jnp.tanh(weight(x)) @ down))

    gradient = jax.value_and_grad(loss, argnums=(0, 1))
    expected = jax.jit(gradient)(down, x, weight)
    sharded = dataclasses.replace(place(weight), sharding=NamedSharding(mesh, spec))
    arguments = place(down, "tensor"), place(x, ("data", "fsdp")), sharded
    program = jax.jit(gradient).lower(*arguments).compile()
    found = program(*arguments)
    errors = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(*map(_arrays, (found, expected)), strict=True)]
    return {**facts(program.as_text(), ALIGNED), "error": float(max(errors))}


def _arrays(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def held_shards():
    """Sizes of the shards of a map that is stored."""
    sharding = NamedSharding(make_mesh((2, 2, 2)), BOTH)
    weight = MapWeight.create(RandomMap(ALIGNED, name=PATH), replicated_key(sharding.mesh), sharding)
    return [shard.data.size for shard in jax.jit(draw_maps)(weight).levels.addressable_shards]


def counterparts():
    """What happens with another generator, and where only the result is told its layout."""
    mesh = make_mesh((2, 2, 2))
    sharding = NamedSharding(mesh, BOTH)

    def of(draw, key, shape):
        constrained = lambda key: jax.lax.with_sharding_constraint(draw(key), sharding)  # noqa: E731
        return facts(jax.jit(constrained).lower(key).compile().as_text(), shape)

    key = replicated_key(mesh)
    found = {"rbg": of(lambda key: jax.random.bits(key, ALIGNED), replicated_key(mesh, impl="rbg"), ALIGNED)}
    for name in ("rademacher", "hadamard"):
        found[f"{name}, end only"] = of(RandomMap(ODD, name).materialize, key, ODD)
    recipes._place = lambda x, *_: x
    found["no layout inside"] = of(lambda key: RandomMap(ODD, "hadamard").materialize(key, sharding), key, ODD)
    return found


def main():
    jax.config.update("jax_num_cpu_devices", 8)
    found = {
        "materialize": {f"{case[0]} {case[1]}": materialize_everything(*case) for case in CASES},
        "train": {
            f"{name} {spec}": train_through_a_map(spec, name)
            for name, spec in (("rademacher", COLUMNS), ("normal", ROWS))
        },
        "held": held_shards(),
        "counterparts": counterparts(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
