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
from freezejax.random_maps import RECIPES, map_weights
from tests.artifact.conftest import GEGLU, moved

GATE_UP = ".*/(gate|up)/kernel"
LORA = {"lora": [{"pattern": ".*/(qkv|gate)/kernel", "rank": 4, "alpha": 8.0}]}
KINDS = {"normal": ("fan_in", {}), "uniform": ("fan_in", LORA), "rademacher": ("gain", {}), "hadamard": ("gain", LORA)}
MODELS = {
    name: {**GEGLU, "num_layers": 1, "maps": [{"pattern": GATE_UP, "distribution": name, "scale": scale}], **lora}
    for name, (scale, lora) in KINDS.items()
}
CHILD = """
import sys, jax, numpy as np
from pathlib import Path
from jax.sharding import NamedSharding, PartitionSpec
from freezejax import artifact
from freezejax.paths import leaf_paths
from freezejax.random_maps import map_weights

assert jax.device_count() == 8
folder = Path(sys.argv[1])
tokens = np.load(folder / "tokens.npy")
mesh = jax.sharding.Mesh(jax.devices(), ("x",))
everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(None, "x"))
for path in folder.glob("*.fjax"):
    apply, params, _ = artifact.load(path)
    found = dict(zip(leaf_paths(params), jax.tree.leaves(params), strict=True))
    assert all(len(leaf.sharding.device_set) == 1 for leaf in found.values())
    found["one"] = jax.jit(apply)(params, tokens)
    logits = jax.jit(apply)(jax.device_put(params, everywhere), jax.device_put(tokens, everywhere))
    assert len(logits.sharding.device_set) == 8
    found |= {f"device {i}": shard.data for i, shard in enumerate(logits.addressable_shards)}
    for weight in map_weights(params):
        drawn = jax.jit(weight.map.materialize, static_argnums=1)(weight.key, split)
        assert [shard.data.shape[1] for shard in drawn.addressable_shards] == [drawn.shape[1] // 8] * 8
        found["map " + weight.map.name] = drawn
    np.savez(path.with_suffix(".npz"), **{name: np.asarray(value) for name, value in found.items()})
"""


@pytest.fixture(scope="module")
def there(tokens, tmp_path_factory):
    """Folder of the files, and of what the other process found in each."""
    folder = tmp_path_factory.mktemp("files")
    np.save(folder / "tokens.npy", tokens)
    for name, config in MODELS.items():
        artifact.save(folder / f"{name}.fjax", trained(config), model=config, compressor="zlib")
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": root}
    ended = subprocess.run([sys.executable, "-c", CHILD, str(folder)], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return folder


def trained(config, root=7):
    """Parameters of which no leaf is at its start."""
    shapes = jax.eval_shape(models.build(**config).init, jax.random.key(0))

    def drawn(path, leaf):
        if leaf.dtype == jnp.uint32:
            return jax.random.key_data(jax.random.key(root))
        return moved(path, jnp.ones(leaf.shape) if path.endswith(("scale", "gain")) else jnp.zeros(leaf.shape))

    return map_with_paths(drawn, shapes)


def check_same(config, params, tokens, found):
    """`found` is what the other process has of a model whose parameters are `params`."""
    quantized = artifact.quantize(params)
    here = dict(zip(leaf_paths(quantized), jax.tree.leaves(quantized), strict=True))
    here |= {f"map {weight.map.name}": weight.map.materialize(weight.key) for weight in map_weights(params)}
    logits = jax.jit(models.build(**config).apply)(quantized, tokens)
    here |= dict.fromkeys(["one", *(f"device {i}" for i in range(8))], logits)
    assert here.keys() == found.keys()
    for name, value in here.items():
        assert value.dtype == found[name].dtype
        assert np.asarray(value).tobytes() == found[name].tobytes(), name


@pytest.mark.parametrize("name", MODELS)
def test_the_same_model_in_another_process(name, there, tokens):
    check_same(MODELS[name], trained(MODELS[name]), tokens, dict(np.load(there / f"{name}.npz")))


def test_every_portable_recipe_is_there():
    assert MODELS.keys() == {name for name, recipe in RECIPES.items() if recipe.portable}


def test_counterpart_another_root_seed_is_another_model(there, tokens):
    with pytest.raises(AssertionError, match="root"):
        check_same(MODELS["normal"], trained(MODELS["normal"], root=8), tokens, dict(np.load(there / "normal.npz")))


def test_counterpart_what_was_not_quantized_differs(there, tokens, monkeypatch):
    monkeypatch.setattr(artifact, "quantize", lambda params: params)
    with pytest.raises(AssertionError, match="kernel"):
        check_same(MODELS["normal"], trained(MODELS["normal"]), tokens, dict(np.load(there / "normal.npz")))
