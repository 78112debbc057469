"""Laws of both models: causality, initial values, dropout, dtypes, frozen kernels."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freezejax import models
from freezejax.errors import UserError
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


OF_DEPTH = {"gpt2": ".*/c_proj/kernel", "nemotron_h": "blocks/.*(out|o|down)_proj/kernel"}


def test_another_layer_changes_no_other_leaf(family, small):
    key = jax.random.key(3)
    fewer, more = (by_path(small(family, num_layers=n)[0].init(key)) for n in (2, 3))
    assert fewer.keys() < more.keys()
    for path, leaf in fewer.items():
        if re.fullmatch(OF_DEPTH.get(family, ""), path):  # the same draw, over the root of the depth
            leaf, more[path] = leaf * 2**0.5, more[path] * 3**0.5
            np.testing.assert_allclose(leaf, more[path], rtol=1e-6)
        elif path != "skip_weights" and not (family == "parameter_golf" and path.startswith("blocks/2")):
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


def test_published_models_have_their_published_sizes():
    sizes = {name: models.count(models.build(name).abstract_params()) for name in ("gpt2", "llama", "nemotron_h")}
    # Of GPT-2 small, of SmolLM2-135M, of Nemotron 3 Nano 30B-A3B, which does not count the balance of its experts.
    assert sizes == {"gpt2": 124_439_808, "llama": 134_515_008, "nemotron_h": 31_577_937_344 + 23 * 128}


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
        assert float(jnp.linalg.norm(a - b)) <= 0.15 * float(jnp.linalg.norm(b)), path


def test_taps_are_the_streams_after_blocks(family, small, tokens):
    """What a block leaves is what the rest of the model, run from there, turns into the same logits."""
    model, params = small(family, num_layers=4)
    model = models.build(family, **vars(model.config))
    logits, streams = model.apply(params, tokens, taps=[3, 1])
    assert list(streams) == [3, 1]
    np.testing.assert_array_equal(logits, model.apply(params, tokens))
    for i, stream in streams.items():
        assert all(leaf.shape == (2, 10, 24) for leaf in jax.tree.leaves(stream))
        np.testing.assert_array_equal(logits, model.apply(params, tokens, blocks=i + 1, hidden=stream))
    last = lambda stream: jax.tree.leaves(stream)[-1]  # noqa: E731
    assert float(jnp.abs(last(streams[1]) - last(streams[3])).max()) > 0.1


def test_rematerialised_blocks_give_the_same_loss_and_gradients(family, small, tokens):
    small_model, params = small(family, dropout=0.2)
    model = models.build(family, **vars(small_model.config))

    def program(remat):
        options = {"targets_BxT": tokens, "dropout_key": jax.random.key(4), "remat": remat}
        return jax.jit(jax.value_and_grad(lambda params: model.apply(params, tokens, **options).mean()))

    (loss, grads), (kept_loss, kept_grads) = (program(remat)(params) for remat in (True, False))
    assert loss == kept_loss
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, kept_grads)
    # The counterpart: the matmuls of the forward pass really are in the program a second time.
    again, once = (program(remat).lower(params).as_text().count("stablehlo.dot_general") for remat in (True, False))
    assert again >= once + 4 * model.config.num_layers


def test_rematerialisation_lowers_the_memory_of_a_step(family, small):
    """Eight blocks: what is kept between the passes is their inputs alone."""
    model = models.build(family, **{**vars(small(family)[0].config), "num_layers": 8})
    tokens = jax.ShapeDtypeStruct((8, 64), jnp.int32)

    def held(remat):
        loss = lambda params, tokens: model.apply(params, tokens, targets_BxT=tokens, remat=remat).mean()  # noqa: E731
        program = jax.jit(jax.grad(loss)).lower(model.abstract_params(), tokens).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert held(remat=True) < 0.6 * held(remat=False)


def test_bfloat16_parameters_stay_so_and_have_such_gradients(family, small, tokens):
    model, params = small(family)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    model.check(half)
    near = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    np.testing.assert_allclose(model.apply(half, tokens), model.apply(near, tokens), atol=0.05)
    grads = jax.grad(lambda params: model.apply(params, tokens).mean())(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}


def _with(params, path, leaf):
    return map_with_paths(lambda name, old: leaf if name == path else old, params)


FOREIGN = {
    "a leaf is missing": (
        lambda p: {k: v for k, v in p.items() if k != "ln_f"},
        "have no leaf 'ln_f/scale'; nearest: ",
    ),
    "a leaf is left over": (
        lambda p: {**p, "ln_g": {"scale": jnp.ones(24)}},
        "no place for leaf 'ln_g/scale'; nearest",
    ),
    "a leaf of another shape": (
        lambda p: _with(p, "ln_f/scale", jnp.ones(23)),
        r"leaf 'ln_f/scale' is float32\[23\]; the model's is float32\[24\]",
    ),
    "a leaf of integers": (lambda p: _with(p, "ln_f/scale", jnp.ones(24, jnp.int32)), r"'ln_f/scale' is int32\[24\];"),
    "blocks as a list": (
        lambda p: {**p, "blocks": list(p["blocks"].values())},
        "must be nested dicts as `init` returns",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_parameters_are_refused_in_one_line(case, small):
    model, params = small("geglu")
    model.check(params)
    change, message = FOREIGN[case]
    with pytest.raises(UserError, match=message) as error:
        model.check(change(params))
    assert "\n" not in str(error.value)


def test_a_seed_is_no_float():
    model = models.build("geglu", num_layers=1, weights=[{"pattern": ".*/up/kernel", "kind": "map"}])
    params = model.init(jax.random.key(0))
    model.check(params)
    with pytest.raises(UserError, match=r"up/kernel/seed' is float32\[2\]; the model's is uint32\[2\]"):
        model.check(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params))


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
