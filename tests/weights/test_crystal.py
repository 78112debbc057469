"""Crystals: the nearest matrix of a rank, the mean, a random one of equal norm; stored as what they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezejax import UserError, artifact, models
from freezejax.masks import count_parameters
from freezejax.weights import CrystalWeight, MapWeight, ScalarWeight, count_seeded, matrix, recast
from tests.weights.contract import KEY, SITE, moved, plain

DOWN = r"blocks/\d+/mlp/down/kernel"


def truncated(kernel, rank):
    u, s, v = np.linalg.svd(np.asarray(kernel, np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 999))
def test_the_nearest_matrix_of_a_rank_is_that_of_the_singular_values(width_in, width_out, rank, seed):
    kernel, rank = plain((width_in, width_out), seed), min(rank, width_in, width_out)
    found = CrystalWeight.make(kernel, SITE, rank=rank).materialize()
    np.testing.assert_allclose(found, truncated(kernel, rank), atol=2e-5)


def test_counterpart_another_axis_is_further_away():
    kernel = plain()
    found = CrystalWeight.make(kernel, SITE)
    turned = CrystalWeight(found.left[::-1], found.right).materialize()
    nearest = np.linalg.norm(kernel - truncated(kernel, 1))
    assert np.linalg.norm(kernel - found.materialize()) < 1.0001 * nearest < np.linalg.norm(kernel - turned)


def test_its_factors_are_of_one_size_and_a_zero_matrix_stays_zero():
    crystal = CrystalWeight.make(1e3 * plain(), SITE, rank=2)
    np.testing.assert_allclose(np.linalg.norm(crystal.left, axis=0), np.linalg.norm(crystal.right, axis=1), rtol=1e-4)
    assert not np.any(CrystalWeight.make(jnp.zeros((3, 4)), SITE, rank=2).materialize())


def test_the_mean_is_what_every_input_gets():
    found = CrystalWeight.make(plain(), SITE, form="mean").materialize()
    np.testing.assert_allclose(found, np.broadcast_to(np.mean(plain(), axis=0), found.shape), rtol=1e-5)


def test_a_random_one_has_the_norm_of_what_it_replaces_and_the_bytes_of_one_number():
    found = CrystalWeight.make(plain(), SITE, form="random", distribution="rademacher")
    assert isinstance(found, ScalarWeight)
    assert isinstance(found.base, MapWeight)
    np.testing.assert_allclose(np.linalg.norm(found.materialize()), np.linalg.norm(plain()), rtol=1e-5)
    other = CrystalWeight.make(plain(), SITE._replace(path="blocks/9/x/kernel"), form="random")
    assert abs(np.corrcoef(np.ravel(found.materialize()), np.ravel(other.materialize()))[0, 1]) < 0.5
    assert count_seeded({"w": found}) == plain().size


def test_what_is_kept_is_the_kernel_itself():
    kernel = plain()
    assert CrystalWeight.make(kernel, SITE, form="kept") is kernel


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "mena"}, "form='mena': expected one of low_rank, mean, random, kept; nearest: mean"),
        ({"rank": 0}, "rank=0 must be an integer of at least 1"),
        ({"rank": 21}, "rank=21 must be at most 20"),
    ],
)
def test_a_form_or_rank_that_there_is_not_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        CrystalWeight.make(plain(), SITE, **options)


def test_trained_parameters_are_recast_and_the_model_with_those_rules_computes_with_them(tmp_path):
    config = {"family": "geglu", "vocab_size": 13, "model_dim": 32, "num_heads": 2, "num_layers": 2}
    rules = [{"pattern": DOWN, "kind": "crystal", "rank": 2}]
    trained = moved(models.build(**config).init(KEY))
    crystals = recast(trained, rules, KEY)
    for i, block in trained["blocks"].items():
        found = crystals["blocks"][i]["mlp"]["down"]["kernel"]
        np.testing.assert_allclose(matrix(found), truncated(block["mlp"]["down"]["kernel"], 2), atol=2e-5)
        assert crystals["blocks"][i]["mlp"]["up"]["kernel"] is block["mlp"]["up"]["kernel"]
    model, tokens = models.build(**config, weights=rules), jnp.arange(12).reshape(2, 6)
    model.check(crystals)
    whole = {
        **trained,
        "blocks": jax.tree.map(matrix, crystals["blocks"], is_leaf=lambda x: isinstance(x, CrystalWeight)),
    }
    np.testing.assert_allclose(model.apply(crystals, tokens), models.build(**config).apply(whole, tokens), atol=1e-5)
    per_kernel = 2 * (32 + trained["blocks"][0]["mlp"]["down"]["kernel"].shape[0])
    dense = sum(block["mlp"]["down"]["kernel"].size for block in trained["blocks"].values())
    assert count_parameters(crystals) == count_parameters(trained) - dense + 2 * per_kernel
    written = {"model": {**config, "weights": rules}, "compressor": "none"}
    saved = artifact.save(tmp_path / "x.fjax", crystals, **written)
    assert saved.bytes == artifact.predict_size(crystals, **written).high
    apply, loaded, _ = artifact.load(tmp_path / "x.fjax")
    np.testing.assert_array_equal(apply(loaded, tokens), model.apply(artifact.quantize(crystals), tokens))
