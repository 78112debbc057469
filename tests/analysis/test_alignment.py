"""Axes and predictions whose answers are known; gradients, Fisher information, plasticity against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from freezejax import UserError, analysis, models, trainable_mask
from freezejax.paths import by_path


@given(st.integers(0, 999))
def test_alignment_is_the_mean_cosine_of_the_angles_that_scipy_finds(seed):
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(3, 9)), rng.normal(size=(4, 9))
    wanted = np.cos(subspace_angles(one.T, other.T)).mean()
    found = analysis.alignment(jnp.asarray(one, jnp.float32), jnp.asarray(other, jnp.float32))
    assert found == pytest.approx(wanted, abs=1e-4)


def test_spans_that_are_equal_or_apart():
    axes = jnp.eye(6)
    assert analysis.alignment(axes[:2], 5 * axes[1::-1]) == pytest.approx(1.0)
    assert analysis.alignment(axes[:2], axes[2:]) == pytest.approx(0.0, abs=1e-6)
    assert analysis.chance_alignment(1, 1, 400, draws=30) < 0.1
    assert analysis.chance_alignment(8, 8, 8, draws=2) == pytest.approx(1.0, abs=1e-5)


def test_principal_axes_are_those_of_the_singular_values():
    matrix = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32) * np.arange(1, 7, dtype=np.float32)
    for centered in (True, False):
        rows = matrix - matrix.mean(0) if centered else matrix
        wanted = np.linalg.svd(rows)[2][:3]
        found = np.asarray(analysis.principal_axes(jnp.asarray(matrix), 3, centered=centered))
        np.testing.assert_allclose(np.abs(np.sum(found * wanted, axis=1)), 1.0, atol=1e-4)
        other = matrix.T - matrix.T.mean(0) if centered else matrix.T  # of 30 columns, on the smaller Gram matrix
        wanted = np.linalg.svd(other)[2][:3]
        found = np.asarray(analysis.principal_axes(jnp.asarray(matrix.T), 6, centered=centered))
        np.testing.assert_allclose(np.abs(np.sum(found[:3] * wanted, axis=1)), 1.0, atol=1e-4)
        np.testing.assert_allclose(found @ found.T, np.eye(6), atol=1e-5)  # the sixth, centered, is any other
    for shape in (matrix, matrix.T):
        with pytest.raises(UserError, match="count=7: expected 1 to 6"):
            analysis.principal_axes(jnp.asarray(shape), 7)


def test_what_is_predictable_is_predicted_and_noise_is_not():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(200, 5))
    signal, noise = features @ rng.normal(size=(5, 2)), rng.normal(size=(200, 2))
    assert analysis.cross_validated_r2(features, signal) > 0.99
    half = analysis.cross_validated_r2(features, signal / signal.std(0) + noise)
    assert 0.35 < half < 0.6
    assert -0.1 < analysis.cross_validated_r2(features, noise) < 0.05
    in_sample = np.linalg.lstsq(np.c_[features, np.ones(200)], noise, rcond=None)[0]
    left = noise - np.c_[features, np.ones(200)] @ in_sample
    assert 1 - left.var() / noise.var() > analysis.cross_validated_r2(features, noise)  # the counterpart
    with pytest.raises(UserError, match="3 rows of features, 3 of targets, 3 groups, 5 folds"):
        analysis.cross_validated_r2(features[:3], signal[:3])


def test_sensitivities_are_norms_of_gradients_row_by_row():
    model = models.build("geglu", vocab_size=31, num_layers=1, model_dim=16, num_heads=1)
    params = model.init(jax.random.key(0))
    mask = trainable_mask(params, [(".*/kernel", True), (".*", False)])
    rows = np.random.default_rng(0).integers(0, 31, size=(3, 2, 9)).astype(np.int32)

    def loss(params, batch):
        return jnp.mean(model.apply(params, batch[:, :-1], targets_BxT=batch[:, 1:]))

    found = analysis.sensitivities(loss, params, [jnp.asarray(batch) for batch in rows], mask)
    assert found.keys() == {path for path, trains in by_path(mask).items() if trains}
    whole = by_path(jax.grad(loss)(params, jnp.asarray(rows.reshape(6, 9))))
    alone = [by_path(jax.grad(loss)(params, jnp.asarray(row[None]))) for row in rows.reshape(6, 9)]
    for path, (norm, fisher) in found.items():
        assert norm == pytest.approx(float(jnp.linalg.norm(whole[path])), rel=1e-3)
        assert fisher == pytest.approx(np.mean([float(jnp.sum(each[path] ** 2)) for each in alone]), rel=1e-3)
        assert fisher > norm**2  # a mean of squares


def test_plasticity_sees_another_geometry_and_no_turn_of_it():
    rng = np.random.default_rng(2)
    one = jnp.asarray(rng.normal(size=(6, 4, 5)), jnp.float32)
    turn = jnp.asarray(np.linalg.qr(rng.normal(size=(20, 20)))[0], jnp.float32)
    turned = (one.reshape(6, 20) @ turn).reshape(one.shape)
    assert float(analysis.plasticity(one, 3 * turned)) < 1e-10
    other = jnp.asarray(rng.normal(size=(6, 4, 5)), jnp.float32)
    a, b = (np.asarray(side, np.float64).reshape(6, -1) for side in (one, other))
    grams = [side @ side.T / np.linalg.norm(side @ side.T, axis=1, keepdims=True) for side in (a, b)]
    assert float(analysis.plasticity(one, other)) == pytest.approx(np.mean((grams[0] - grams[1]) ** 2), rel=1e-4)


def test_rows_that_share_their_features_do_not_tell_each_other():
    """Eight matrices over the same 64 dimensions, targets shared, features of noise: nothing can be predicted."""
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(64, 10)), rng.normal(size=64)
    tiled, told, dimension = np.tile(features, (8, 1)), np.tile(targets, 8), np.tile(np.arange(64), 8)
    assert analysis.cross_validated_r2(tiled, told) > 0.0  # the counterpart: each dimension is in every part
    assert analysis.cross_validated_r2(tiled, told, groups=dimension) < 0.0
    with pytest.raises(UserError, match="3 groups, 5 folds: do not fit"):
        analysis.cross_validated_r2(tiled, told, groups=dimension % 3)


def test_how_far_weights_have_gone():
    before = {"w": jnp.array([3.0, 4.0]), "n": jnp.array(1), "zero": jnp.zeros(2), "left": jnp.zeros(1)}
    after = {"w": jnp.array([3.0, 9.0]), "n": jnp.array(2), "zero": jnp.zeros(2), "left": jnp.ones(1)}
    assert analysis.moved(after, before) == {"w": 1.0, "zero": 0.0, "left": np.inf}
