"""Experts: every token meets its own and no other, whatever the routing; what is frozen or balanced stays."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import freezejax
from freezejax import models
from freezejax.models.grouped import ROWS, blocks, grouped

E, D, WIDTH = 6, 24, 10
CONFIG = {"vocab_size": 13, "num_layers": 2, "pattern": "E", "model_dim": D, "mlp_width": 32, "experts": E} | {
    "expert_choices": 2, "expert_width": WIDTH, "shared_expert_width": 12, "num_heads": 2, "num_kv_heads": 1,
    "head_dim": 8, "mamba_heads": 2, "mamba_groups": 1,
}  # fmt: skip


def moe(**changes):
    """The mixture of the first block, as a function of its parameters and [N, D], and its parameters."""
    from flax import nnx

    from freezejax.models.experts import MixtureOfExperts

    config = models.NemotronHConfig(**{**CONFIG, **changes})
    graph, state = nnx.split(MixtureOfExperts(config))
    shapes = nnx.to_pure_dict(state)
    keys = iter(jax.random.split(jax.random.key(0), 20))
    params = jax.tree.map(lambda leaf: 0.5 * jax.random.normal(next(keys), leaf.shape), shapes)
    return config, jax.jit(lambda params, x: nnx.merge(graph, params)(x)), params


def by_hand(config, p, x):
    """One token after the other, in float64."""
    relu2 = lambda z: np.maximum(z, 0) ** 2  # noqa: E731
    p, out = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p), []
    per_group = config.experts // config.expert_groups
    for row in np.asarray(x, np.float64):
        affinity = 1 / (1 + np.exp(-row @ p["router"]["kernel"]))
        choice = affinity + p["router"]["balance"]
        groups = np.sort(choice.reshape(-1, per_group), axis=1)[:, -2:].sum(axis=1)
        open_ = np.isin(np.arange(config.experts) // per_group, np.argsort(groups)[-config.group_choices :])
        chosen = np.argsort(np.where(open_, choice, 0))[::-1][: config.expert_choices]
        share = affinity[chosen]
        share = share / share.sum() if config.shares_add_to_one else share
        inner = row @ p["latent_in"]["kernel"] if "latent_in" in p else row
        up, down = p["experts"]["up_proj"]["kernel"], p["experts"]["down_proj"]["kernel"]
        y = config.share_scale * sum(s * relu2(inner @ up[e]) @ down[e] for s, e in zip(share, chosen, strict=True))
        y = y @ p["latent_out"]["kernel"] if "latent_out" in p else y
        shared = p["shared_experts"]
        out.append(y + relu2(row @ shared["up_proj"]["kernel"]) @ shared["down_proj"]["kernel"])
    return np.array(out)


WAYS = {
    "as it is": {},
    "one expert": {"expert_choices": 1},
    "all experts": {"expert_choices": E},
    "shares that do not add to one": {"shares_add_to_one": False, "share_scale": 1.0},
    "in the best groups": {"expert_groups": 3, "group_choices": 2, "expert_choices": 3},
    "on fewer dims": {"latent_dim": 7},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_mixture_is_what_it_is_by_hand(way):
    config, apply, params = moe(**WAYS[way])
    x = np.random.default_rng(1).standard_normal((37, D)).astype(np.float32)
    np.testing.assert_allclose(apply(params, x), by_hand(config, params, x), rtol=2e-4, atol=2e-4)


def test_all_tokens_may_go_to_one_expert():
    config, apply, params = moe(expert_choices=1)
    params["router"]["balance"] = jnp.zeros(E).at[4].set(10.0)
    x = np.random.default_rng(1).standard_normal((301, D)).astype(np.float32)
    np.testing.assert_allclose(apply(params, x), by_hand(config, params, x), rtol=2e-4, atol=2e-4)


def test_counterpart_an_expert_of_its_neighbour_is_noticed():
    config, apply, params = moe()
    x = np.random.default_rng(1).standard_normal((37, D)).astype(np.float32)
    wanted = by_hand(config, params, x)
    params["experts"]["up_proj"]["kernel"] = jnp.roll(params["experts"]["up_proj"]["kernel"], 1, axis=0)
    assert np.abs(apply(params, x) - wanted).max() > 1


@settings(max_examples=10)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=600), st.integers(0, 2))
def test_every_row_has_a_place_of_its_own_in_a_block_of_its_group(groups, unused):
    groups = np.array(groups, np.int32)
    found = blocks(jnp.asarray(groups), 5 + unused)
    place, group = np.asarray(found.place_M), np.asarray(found.group_K)
    assert len(set(place.tolist())) == len(groups)
    np.testing.assert_array_equal(group[place // found.rows], groups)
    x = jnp.arange(len(groups), dtype=jnp.float32)[:, None]
    np.testing.assert_array_equal(found.taken(found.put(x)), x)


@pytest.mark.parametrize("here", [3, 2], ids=["all here", "some elsewhere"])
def test_products_and_gradients_are_those_of_single_products(here):
    """Rows of groups that are elsewhere give zeros, and get and leave no gradient."""
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 3, 50).astype(np.int32)
    x, w, weight = (rng.standard_normal(s).astype(np.float32) for s in ((50, 4), (here, 4, 2), (50, 2)))
    sent = blocks(jnp.asarray(np.minimum(groups, here)), here)

    def ours(x, w):
        y = sent.taken(grouped(sent.put(x), w, sent.group_K))
        return jnp.sum(y * weight), y

    def plain(x, w):
        y = jnp.einsum("mi,mio->mo", x, w[np.minimum(groups, here - 1)]) * np.float32(groups < here)[:, None]
        return jnp.sum(y * weight), y

    x, w = jnp.asarray(x), jnp.asarray(w)
    both = [jax.grad(way, (0, 1), has_aux=True)(x, w) for way in (ours, plain)]
    for found, wanted in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_an_empty_block_is_multiplied_with_nothing():
    """A matrix of NaN meets no row: the blocks that no group fills are skipped."""
    groups = jnp.zeros(300, jnp.int32)
    sent = blocks(groups, 2)
    w = jnp.stack([jnp.ones((4, 2)), jnp.full((4, 2), jnp.nan)])
    assert int((sent.group_K == 2).sum()) > 0
    y = grouped(sent.put(jnp.ones((300, 4))), w, sent.group_K)
    np.testing.assert_array_equal(sent.taken(y), np.full((300, 2), 4.0))
    assert bool(jnp.isfinite(y).all())


def program(frozen, tokens=512):
    """The compiled gradient of a loss, of everything or of all but the experts."""
    model = models.build("nemotron_h", **CONFIG | {"num_layers": 1, "expert_width": 50})
    params = model.abstract_params()
    rules = [(r".*/experts/.*", False), (".*", True)] if frozen else [(".*", True)]
    gradient = freezejax.value_and_grad(
        lambda p, t: model.apply(p, t, targets_BxT=t).mean(), freezejax.trainable_mask(params, rules)
    )
    return jax.jit(gradient).lower(params, jax.ShapeDtypeStruct((1, tokens), jnp.int32)).compile().as_text()


def largest(text):
    """Numbers of the largest array of a compiled program."""
    return max(np.prod([int(n) for n in dims.split(",")]) for dims in re.findall(r"f32\[([\d,]+)\]", text))


def test_no_array_of_tokens_by_experts_by_width_is_ever_made():
    """Nor one of matrices by blocks; `jax.lax.ragged_dot`, the counterpart, makes the first on a CPU."""
    tokens, choices = 512, CONFIG["expert_choices"]
    assert largest(program(frozen=False)) <= (tokens * choices + E * ROWS) * 50 < tokens * E * 50
    x, w = jnp.zeros((tokens * choices, D)), jnp.zeros((E, D, 50))
    dense = jax.jit(jax.lax.ragged_dot).lower(x, w, jnp.zeros(E, jnp.int32)).compile().as_text()
    assert largest(dense) >= E * tokens * choices * D


def test_frozen_experts_leave_no_matmul_for_their_gradients():
    dots = [
        len(re.findall(r" dot\(|custom_call_target=\"__onednn\$matmul", program(frozen))) for frozen in (False, True)
    ]
    assert dots[0] - dots[1] == 2


def test_the_balance_of_experts_does_not_move_whatever_the_rules_say():
    """It has no gradient, and weight decay would shrink it: with plain optax it moves."""
    model = models.build("nemotron_h", **CONFIG)
    params = model.init(jax.random.key(0))
    balance = jnp.linspace(-1.0, 1.0, E)
    for block in params["blocks"].values():
        block["mixer"]["router"]["balance"] = balance
    tokens = jnp.arange(26, dtype=jnp.int32).reshape(2, 13) % 13
    loss = lambda p: model.apply(p, tokens, targets_BxT=tokens).mean()  # noqa: E731
    tx, mask = optax.adamw(0.1, weight_decay=0.5), freezejax.trainable_mask(params, [(".*", True)])
    _, gradient = jax.jit(freezejax.value_and_grad(loss, mask))(params)
    frozen = freezejax.freeze(tx, mask)
    with jax.numpy_dtype_promotion("standard"):  # for optax
        updates, _ = frozen.update(gradient, frozen.init(params), params)
        plain, _ = tx.update(jax.jit(jax.grad(loss))(params), tx.init(params), params)
    after = freezejax.apply_updates(params, updates)
    np.testing.assert_array_equal(after["blocks"][0]["mixer"]["router"]["balance"], balance)
    assert bool(
        (after["blocks"][0]["mixer"]["router"]["kernel"] != params["blocks"][0]["mixer"]["router"]["kernel"]).all()
    )
    assert bool((plain["blocks"][0]["mixer"]["router"]["balance"] != 0).any())
