"""Run by test_preflight.py in a process of its own: a product too large for TPU v5e. Prints what came of it as JSON."""

import json

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from freezejax import aot
from freezejax.sharding import make_mesh


def main():
    topology = aot.load("v5e:2x4")
    everywhere = NamedSharding(make_mesh(devices=topology.devices), P())
    shapes = ((200_000, 100_000), (100_000, 100))
    x, y = (jax.ShapeDtypeStruct(shape, jnp.float32, sharding=everywhere) for shape in shapes)
    program = aot.compile_for(jax.jit(lambda x, y: (2 * jnp.sin(x)) @ y).lower(x, y), topology)
    print(json.dumps({"fits": program.fits, "peak": program.peak}))


if __name__ == "__main__":
    main()
