"""What `save` is given wrongly is told in one line, and no file is written."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from freezejax import artifact, models
from freezejax.errors import UserError
from freezejax.weights import MapWeight, RandomMap

CONFIG = {
    **{"family": "geglu", "num_layers": 1, "model_dim": 96, "num_heads": 3},
    "weights": [
        {"pattern": ".*/gate/kernel", "kind": "map", "distribution": "rademacher"},
        {"pattern": ".*/up/kernel", "kind": "lora", "rank": 4},
    ],
}
MAP, LORA = CONFIG["weights"]


@pytest.fixture(scope="module")
def params():
    return models.build(**CONFIG).init(jax.random.key(0), jax.random.key(1))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": {**CONFIG, "weights": [{**MAP, "distribution": "normal"}, LORA]}}, "config MapWeight of RandomMap("),
        ({"model": {**CONFIG, "weights": [{**MAP, "scale": 0.5}, LORA]}}, "scale='fan_in', name="),
        ({"model": {**CONFIG, "weights": [LORA]}}, "wrong model"),
        ({"model": {**CONFIG, "weights": [MAP, {**LORA, "alpha": 64}]}}, "hold LoraWeight at 'blocks/0/mlp/up/kernel'"),
        ({"model": {**CONFIG, "maps": [{"pattern": ".*"}]}}, "'kind': 'map'}]"),
        ({"model": "geglu"}, "is not a mapping"),
        ({"model": models.build(**CONFIG)}, "model=a Model is not a mapping; pass the mapping given to models.build"),
        ({"tokenizer": "bytes"}, "tokenizer='bytes' is not a mapping"),
        ({"codec": None}, "give a codec"),
        ({"codec": [(".*",)]}, "write (pattern, codec)"),
        ({"codec": {".*": "int6"}}, "give a codec"),
        ({"compressor": []}, "there is no compressor"),
    ],
)
def test_one_line_and_no_file(params, change, told, tmp_path):
    path = tmp_path / "x.fjax"
    with pytest.raises(UserError) as error:
        artifact.save(path, params, **{"model": CONFIG, **change})
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert not path.exists()


def test_the_keys_of_an_nnx_model_are_named_with_what_leaves_them_out(tmp_path):
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Dropout(0.1, rngs=nnx.Rngs(1)))
    with pytest.raises(UserError, match="artifact stores float weights; of an nnx model save ") as error:
        artifact.save(tmp_path / "x", nnx.to_pure_dict(nnx.state(model)))
    advice = str(error.value).partition(" save ")[2]
    assert advice in (Path(__file__).parents[2] / "docs" / "artifact.md").read_text(encoding="utf-8")
    artifact.save(tmp_path / "x", eval(advice, {"nnx": nnx, "model": model}))
    assert [found["path"] for found in artifact.read_metadata(tmp_path / "x")["tensors"]] == [
        "layers/0/bias",
        "layers/0/kernel",
    ]


def test_how_maps_lie_on_a_mesh_is_no_part_of_the_model(params, tmp_path):
    mesh = jax.make_mesh((1,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "tensor"))
    placed = jax.tree.map(
        lambda leaf: dataclasses.replace(leaf, sharding=sharding) if isinstance(leaf, MapWeight) else leaf,
        params,
        is_leaf=lambda leaf: isinstance(leaf, MapWeight),
    )
    one, other = (artifact.save(tmp_path / name, tree, model=CONFIG) for name, tree in (("a", params), ("b", placed)))
    assert one.path.read_bytes() == other.path.read_bytes()


def test_bfloat16_weights_come_back_as_quantized(params, tmp_path):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf, params)
    artifact.save(tmp_path / "x", half, model=CONFIG)
    loaded, wanted = artifact.load(tmp_path / "x")[1], artifact.quantize(half)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("scale", [1e39, 1e-44, 10**400, -1, True, "big"])
def test_a_scale_beyond_float32_is_refused(scale):
    with pytest.raises(UserError, match="scale="):
        RandomMap((2, 2), scale=scale)


def test_integers_are_no_input_of_a_map():
    with pytest.raises(UserError, match="not floating point"):
        RandomMap((2, 2)).apply(jnp.ones((1, 2), jnp.int32), jax.random.key(0))
