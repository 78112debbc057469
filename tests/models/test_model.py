"""Laws of both models: causality, initial values, dropout, dtypes, frozen kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freezejax import models
from freezejax.models import attention
from freezejax.models.family import make_init
from freezejax.paths import leaf_paths, map_with_paths


def by_path(tree):
    return dict(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True))


def change_of_earlier_logits(model, params, tokens):
    later = tokens.copy()
    later[:, 6:] = (later[:, 6:] + 1) % 13
    before, after = (np.asarray(model.apply(params, t)) for t in (tokens, later))
    assert np.abs(before - after)[:, 6:].max() > 1e-2
    return np.abs(before - after)[:, :6].max()


def test_later_tokens_leave_earlier_logits_alone(family, small, tokens):
    assert change_of_earlier_logits(*small(family), tokens) < 1e-6


def test_a_model_that_looks_ahead_is_caught(family, small, tokens, monkeypatch):
    """The counterpart: the same check with attention without the mask."""
    monkeypatch.setattr(attention, "causal_attention", jax.nn.dot_product_attention)
    model, params = small(family)
    assert change_of_earlier_logits(models.build(family, **vars(model.config)), params, tokens) > 1e-3


def test_another_layer_changes_no_other_leaf(family, small):
    key = jax.random.key(3)
    fewer, more = (by_path(small(family, num_layers=n)[0].init(key)) for n in (2, 3))
    assert fewer.keys() < more.keys()
    for path, leaf in fewer.items():
        if path != "skip_weights" and not (family == "parameter_golf" and path.startswith("blocks/2")):
            np.testing.assert_array_equal(leaf, more[path], path)


def test_keys_and_paths_give_different_values(family, small):
    model, _ = small(family)
    one, two = (by_path(model.init(jax.random.key(seed))) for seed in (0, 1))
    drawn = [path for path in one if np.asarray(one[path]).std() > 0 and "resid_mix" not in path]
    assert len(drawn) >= 7
    for path in drawn:
        assert bool((one[path] != two[path]).any()), path
    kernels = [one[p].ravel()[:50] for p in drawn if p.endswith("kernel")]
    assert len({tuple(k.tolist()) for k in kernels}) == len(kernels)


@pytest.mark.parametrize("rule", ["normal", "fan_in"])
def test_geglu_spreads(rule):
    params = models.build("geglu", num_layers=1, model_dim=144, num_heads=6, mlp_in_init=rule).init(jax.random.key(0))
    for path, leaf in by_path(params).items():
        if path.endswith("scale"):
            assert bool((leaf == 1).all())
            continue
        gate_or_up = "gate" in path or "up" in path
        wanted = 144**-0.5 if rule == "fan_in" and gate_or_up else 0.02
        assert float(leaf.std()) == pytest.approx(wanted, rel=0.03), path
        assert abs(float(leaf.mean())) < wanted / 20, path


def test_parameter_golf_initial_values():
    params = models.build("parameter_golf", num_layers=2, model_dim=144, num_heads=6, num_kv_heads=3).init(
        jax.random.key(0)
    )
    block = params["blocks"][0]
    assert float(params["tok_emb"]["embedding"].std()) == pytest.approx(0.005, rel=0.03)
    for name in ("c_q", "c_k", "c_v"):
        kernel = block["attn"][name]["kernel"]
        assert float(jnp.abs(kernel).max()) <= 1 / 12
        assert float(kernel.std()) == pytest.approx(1 / 12 / 3**0.5, rel=0.03)
    assert not block["attn"]["proj"]["kernel"].any()
    assert not block["mlp"]["proj"]["kernel"].any()
    assert bool((block["attn"]["q_gain"] == 1.5).all())
    np.testing.assert_array_equal(block["resid_mix"], np.stack([np.ones(144), np.zeros(144)]))
    for ones in (block["attn_scale"], block["mlp_scale"], params["skip_weights"]):
        assert bool((ones == 1).all())


def test_the_published_baseline_has_its_published_size():
    shapes = jax.eval_shape(models.build("parameter_golf").init, jax.random.key(0))
    assert models.count(shapes) == 17_059_912


def test_first_matching_rule_wins():
    ones, zeros = jax.nn.initializers.ones, jax.nn.initializers.zeros
    shapes = {"a": jax.ShapeDtypeStruct((2,), jnp.float32), "ab": jax.ShapeDtypeStruct((2,), jnp.float32)}
    drawn = make_init(shapes, [("a", ones), (".*", zeros)])(jax.random.key(0))
    assert bool((drawn["a"] == 1).all())
    assert not drawn["ab"].any()


def test_dropout_needs_a_key_and_a_rate(family, small, tokens):
    without, params = small(family, num_layers=1)
    with_rate, _ = small(family, num_layers=1, dropout=0.4)
    expected = without.apply(params, tokens)
    np.testing.assert_allclose(with_rate.apply(params, tokens), expected, atol=1e-6)
    keyed = without.apply(params, tokens, dropout_key=jax.random.key(0))
    np.testing.assert_allclose(keyed, expected, atol=1e-6)
    one, again, two = (with_rate.apply(params, tokens, dropout_key=jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert float(jnp.abs(one - expected).max()) > 1e-2
    assert float(jnp.abs(one - two).max()) > 1e-2


def test_bfloat16_logits_are_float32_and_near(family, small, tokens):
    model, params = small(family)
    full = model.apply(params, tokens)
    half = model.apply(params, tokens, compute_dtype=jnp.bfloat16)
    assert full.dtype == half.dtype == jnp.float32
    error = float(jnp.linalg.norm(full - half) / jnp.linalg.norm(full))
    assert 1e-4 < error < 0.05  # above the lower bound: bfloat16 really is used


def test_bfloat16_gradients_are_float32(family, small, tokens):
    model, params = small(family)

    def loss(params, dtype):
        return models.cross_entropy(model.apply(params, tokens, compute_dtype=dtype), tokens).mean()

    half, full = (jax.jit(jax.grad(loss), static_argnums=1)(params, d) for d in (jnp.bfloat16, jnp.float32))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half))
    for (path, a), b in zip(by_path(half).items(), jax.tree.leaves(full), strict=True):
        assert float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) < 0.15, path


def test_a_token_out_of_range_is_not_silent(family, small, tokens):
    model, params = small(family)
    wrong = tokens.copy()
    wrong[0, 0] = 13
    assert bool(jnp.isnan(model.apply(params, wrong)[0]).all())
    assert bool(jnp.isfinite(model.apply(params, wrong)[1]).all())


def test_params_are_plain_float32_dicts(family, small):
    _, params = small(family)

    def plain(node):
        return all(plain(child) for child in node.values()) if type(node) is dict else node.dtype == jnp.float32

    assert plain(params)
    assert all(isinstance(i, int) for i in params["blocks"])


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_kernel_leaves_no_matmul_for_its_gradient(frozen, small, tokens):
    """Gate and up as constants: two matmuls fewer per block, already in the program handed to XLA."""
    model, params = small("geglu")

    def loss(part, rest):
        merged = map_with_paths(lambda path, leaf: part.get(path, leaf), rest)
        return models.cross_entropy(model.apply(merged, tokens), tokens).mean()

    pairs = by_path(params)
    trained = {p: x for p, x in pairs.items() if not (frozen and ("gate" in p or "up" in p))}
    text = jax.jit(jax.grad(loss)).lower(trained, params).as_text()
    everything = 2 * 5 * 3 + 3 + 2 * 6  # kernels and head forward, dX, dW; attention: 2 forward, 4 backward
    assert text.count("stablehlo.dot_general") == everything - (4 if frozen else 0)
