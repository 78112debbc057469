"""A file written here and loaded by a process with eight devices is the same model, bit for bit.

On one of its devices and with everything replicated over all eight, parameters and logits are equal. The maps are, also
where each device draws its own shard only. The products are small enough for one thread each: XLA splits larger ones
among the threads that a device has, and then the last bits of any product, of a stored weight too, depend on those.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freezejax import artifact, models
from freezejax.paths import leaf_paths, map_with_paths
from freezejax.weights import KINDS, RECIPES, maps_of
from tests.artifact.conftest import GEGLU, moved

RECIPE_OF = {"mlp/gate": "normal", "mlp/up": "uniform", "mlp/down": "rademacher", "attn/out": "hadamard"}
# The other kinds, each at a place of its own in two further blocks.
KIND_OF: dict[str, dict[str, object]] = {
    "1/attn/qkv": {"kind": "lowbit", "bits": "ternary"},
    "1/attn/out": {"kind": "supermask"},
    "0/attn/qkv": {"kind": "crystal", "rank": 3},
    "1/mlp/gate": {"kind": "vera", "rank": 8},
    "1/mlp/up": {"kind": "randlora", "rank": 8},
    "1/mlp/down": {"kind": "dora", "rank": 4, "rank_stabilised": True},
    "2/attn/.*": {"kind": "shared", "block": 1},
    "2/mlp/gate": {"kind": "scale_shift"},
    "2/mlp/up": {"kind": "scalar"},
    "2/mlp/down": {"kind": "vera", "rank": 8, "scalars": True},
}
MODEL = {
    **GEGLU,
    "num_layers": 3,
    "correction": "gelu",
    "correction_rank": 4,
    "weights": [
        *({"pattern": f"blocks/0/{place}/kernel", "kind": "map", "distribution": r} for place, r in RECIPE_OF.items()),
        {"pattern": "blocks/0/(mlp/gate|attn/out)/kernel", "kind": "gain"},
        {"pattern": "blocks/0/.*/(qkv|up|out)/kernel", "kind": "lora", "rank": 4, "alpha": 8.0},  # on what is there
        {"pattern": "blocks/(1/attn/out|2/mlp/up)/kernel", "kind": "map"},
        *({"pattern": f"blocks/{place}/kernel", **options} for place, options in KIND_OF.items()),
    ],
}
CHILD = """
import sys, jax, numpy as np
from pathlib import Path
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from freezejax import artifact
from freezejax.paths import leaf_paths
from freezejax.weights import maps_of

assert jax.device_count() == 8
folder = Path(sys.argv[1])
tokens = np.load(folder / "tokens.npy")
mesh = Mesh(jax.devices(), ("x",))
everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(None, "x"))
apply, params, _ = artifact.load(folder / "x.fjax")
found = dict(zip(leaf_paths(params), jax.tree.leaves(params), strict=True))
assert all(len(leaf.sharding.device_set) == 1 for leaf in found.values())
found["logits on one device"] = jax.jit(apply)(params, tokens)
logits = jax.jit(apply)(jax.device_put(params, everywhere), jax.device_put(tokens, everywhere))
assert len(logits.sharding.device_set) == 8
found |= {f"logits on device {i} of 8": shard.data for i, shard in enumerate(logits.addressable_shards)}
for weight in maps_of(params):
    drawn = jax.jit(weight.map.materialize, static_argnums=1)(weight.key, split)
    assert [shard.data.shape[1] for shard in drawn.addressable_shards] == [drawn.shape[1] // 8] * 8
    found["map " + weight.map.name] = drawn
np.savez(folder / "found.npz", **{name: np.asarray(value) for name, value in found.items()})
"""


@pytest.fixture(scope="module")
def there(tokens, tmp_path_factory):
    """What the other process found in the file, by name."""
    folder = tmp_path_factory.mktemp("files")
    np.save(folder / "tokens.npy", tokens)
    artifact.save(folder / "x.fjax", trained(), model=MODEL, compressor="zlib")
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": root}
    ended = subprocess.run([sys.executable, "-c", CHILD, str(folder)], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return dict(np.load(folder / "found.npz"))


@pytest.fixture(scope="module")
def apply():
    return jax.jit(models.build(**MODEL).apply)


def trained(base_seed=7):
    """Parameters of which no leaf is at its start."""
    shapes = jax.eval_shape(models.build(**MODEL).init, jax.random.key(0))

    def drawn(path, leaf):
        if leaf.dtype == jnp.uint32:
            return jax.random.key_data(jax.random.key(base_seed))
        return moved(path, jnp.ones(leaf.shape) if path.endswith(("scale", "gain")) else jnp.zeros(leaf.shape))

    return map_with_paths(drawn, shapes)


def check_same(params, apply, tokens, found):
    """`found` is what the other process has of a model whose quantized parameters are `params`."""
    here = dict(zip(leaf_paths(params), jax.tree.leaves(params), strict=True))
    here |= {f"map {weight.map.name}": jax.jit(weight.map.materialize)(weight.key) for weight in maps_of(params)}
    names = ["logits on one device", *(f"logits on device {i} of 8" for i in range(8))]
    here |= dict.fromkeys(names, apply(params, tokens))
    assert here.keys() == found.keys()
    for name, value in here.items():
        assert value.dtype == found[name].dtype
        assert np.asarray(value).tobytes() == found[name].tobytes(), name


def test_every_kind_is_in_the_model():
    assert {rule["kind"] for rule in MODEL["weights"]} | {"each"} == set(KINDS)  # of stacks: weights/test_stack.py


def test_every_portable_recipe_is_a_map_of_the_model():
    assert {weight.map.distribution for weight in maps_of(trained())} == {
        name for name, recipe in RECIPES.items() if recipe.portable
    }


def test_the_same_model_in_another_process(there, apply, tokens):
    check_same(artifact.quantize(trained()), apply, tokens, there)


def test_counterpart_another_base_seed_is_another_model(there, apply, tokens):
    other = artifact.quantize(trained(base_seed=8))
    with pytest.raises(AssertionError, match="seed"):
        check_same(other, apply, tokens, there)
    there = {name: there[name] for name in there if "logits" in name}
    assert not any(np.asarray(apply(other, tokens)).tobytes() == logits.tobytes() for logits in there.values())


def test_counterpart_what_was_not_quantized_differs(there, apply, tokens):
    with pytest.raises(AssertionError, match="kernel"):
        check_same(trained(), apply, tokens, there)
