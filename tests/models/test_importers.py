import jax
import numpy as np
import pytest

from freezejax import models
from freezejax.errors import UserError
from freezejax.models.importers import state_to_torch


def foreign(family, small):
    model, params = small(family)
    return model, params, state_to_torch(model, params), vars(model.config)


def test_round_trip(family, small, tokens):
    model, params, state, config = foreign(family, small)
    apply, loaded = models.from_torch(family, state, config)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    np.testing.assert_allclose(jax.jit(apply)(loaded, tokens), model.apply(params, tokens), atol=1e-5)


def test_kernels_are_transposed_and_embeddings_are_not(small):
    _, params, state, _ = foreign("geglu", small)
    assert state["tok_emb.weight"].shape == (13, 24)
    assert state["blocks.1.attn.qkv.weight"].shape == (72, 24)
    np.testing.assert_array_equal(state["blocks.1.attn.qkv.weight"].T, params["blocks"][1]["attn"]["qkv"]["kernel"])


def test_other_float_dtypes_become_float32(family, small):
    _, _, state, config = foreign(family, small)
    _, loaded = models.from_torch(family, {n: a.astype(np.float64) for n, a in state.items()}, config)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}


def test_a_missing_name(own_family, small):
    _, _, state, config = foreign(own_family, small)
    state["tok_embed.weight"] = state.pop("tok_emb.weight")
    with pytest.raises(UserError, match=r"the state has no 'tok_emb\.weight'; nearest: tok_embed\.weight"):
        models.from_torch(own_family, state, config)


def test_a_name_left_over(own_family, small):
    _, _, state, config = foreign(own_family, small)
    state["tok_emb.bias"] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match=r"no place for 'tok_emb\.bias'; nearest: tok_emb\.weight"):
        models.from_torch(own_family, state, config)


def test_a_wrong_shape(small):
    _, _, state, config = foreign("geglu", small)
    state["blocks.0.attn.qkv.weight"] = state["blocks.0.attn.qkv.weight"].T
    with pytest.raises(UserError, match=r"'blocks\.0\.attn\.qkv\.weight' has shape \(24, 72\).*\(72, 24\)"):
        models.from_torch("geglu", state, config)


def test_a_layer_too_many(own_family, small):
    _, _, state, config = foreign(own_family, small)
    with pytest.raises(UserError, match=r"'blocks\.|skip_weights"):
        models.from_torch(own_family, state, {**config, "num_layers": config["num_layers"] - 1})


def test_one_golf_layer_has_empty_skip_weights_in_torch(small):
    model, params = small("parameter_golf", num_layers=1)
    state = state_to_torch(model, params) | {"skip_weights": np.zeros((0, 24), np.float32)}
    _, loaded = models.from_torch("parameter_golf", state, vars(model.config))
    assert "skip_weights" not in loaded


def test_a_random_map_is_exported_as_the_kernel_it_stands_for(tokens):
    weights = [{"pattern": ".*/up/kernel", "kind": kind} for kind in ("map", "gain")]
    sizes = {"vocab_size": 13, "num_layers": 1, "model_dim": 24, "num_heads": 2, "rope_dims": 4}
    model, plain = models.build("geglu", **sizes, weights=weights), models.build("geglu", **sizes)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 if leaf.dtype == np.float32 else leaf, model.init(jax.random.key(0), jax.random.key(5))
    )
    state = state_to_torch(model, params)
    up = params["blocks"][0]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(state["blocks.0.mlp.up.weight"].T, up.materialize())
    apply, loaded = models.from_torch("geglu", state, vars(plain.config))
    np.testing.assert_allclose(apply(loaded, tokens), model.apply(params, tokens), atol=1e-5)
    with pytest.raises(UserError, match="leaf 'blocks/0/mlp/up/kernel/base/seed' has no name in torch"):
        models.from_torch("geglu", state, {**vars(model.config), "weights": weights})


def test_an_adapter_is_exported_as_the_kernel_it_stands_for():
    lora = {"pattern": ".*/up/kernel", "kind": "lora", "rank": 2}
    model, plain = models.build("geglu", num_layers=1, weights=[lora]), models.build("geglu", num_layers=1)
    params = jax.tree.map(lambda leaf: leaf + 0.1, model.init(jax.random.key(0)))
    state = state_to_torch(model, params)
    assert state.keys() == state_to_torch(plain, plain.init(jax.random.key(0))).keys()
    up = params["blocks"][0]["mlp"]["up"]["kernel"]
    np.testing.assert_allclose(state["blocks.0.mlp.up.weight"].T, up.base + up.a @ up.b, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [("geglu", "tied", False), ("geglu", "mlp", "swiglu"), ("parameter_golf", "tie_embeddings", False)],
)
def test_a_foreign_setting_that_is_not_supported(family, key, value, small):
    _, _, state, config = foreign(family, small)
    with pytest.raises(UserError, match=f"config {key}="):
        models.from_torch(family, state, {**config, key: value})
