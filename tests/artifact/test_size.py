"""Stored bytes: seeded leaves are free, everything else is billed, and the prediction bounds the packed bytes."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezejax import models
from freezejax.artifact import packed_bytes, predict_bytes


@pytest.fixture(scope="module")
def params():
    model = models.build("geglu", vocab_size=64, num_layers=2, model_dim=64, num_heads=2)
    return model.init(jax.random.key(0))


def _nothing(params):
    return jax.tree.map(lambda _: False, params)


def _gate_up(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: any(k.key in ("gate", "up") for k in path), params)


def test_prediction_is_one_byte_a_weight_and_two_a_scale(params):
    matrices = 64 * 64 + 2 * (64 * 192 + 64 * 64 + 3 * 64 * 128)
    scales = 64 + 2 * (192 + 64 + 128 + 128 + 64)
    vectors = 5 * 64
    assert predict_bytes(params, _nothing(params)) == 8 + matrices + 2 * scales + 2 * vectors


def test_prediction_needs_shapes_only(params):
    shapes = jax.eval_shape(lambda: params)
    assert predict_bytes(shapes, _nothing(params)) == predict_bytes(params, _nothing(params))


def test_seeded_leaves_cost_nothing(params):
    saved = predict_bytes(params, _nothing(params)) - predict_bytes(params, _gate_up(params))
    assert saved == 4 * (64 * 128 + 2 * 128)
    assert packed_bytes(params, _gate_up(params)) < packed_bytes(params, _nothing(params)) - saved * 0.8
    everything = jax.tree.map(lambda _: True, params)
    assert predict_bytes(params, everything) == 8


def test_packed_bytes_of_gaussian_weights_lie_just_below_the_prediction(params):
    predicted, packed = predict_bytes(params, _nothing(params)), packed_bytes(params, _nothing(params))
    assert 0.85 * predicted < packed < predicted


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_incompressible_codes_never_cost_much_more_than_predicted(rows, columns, seed):
    leaf = {"w": np.random.default_rng(seed).normal(size=(rows, columns))}
    # zlib's own frame: 11 bytes, and 5 per stored block
    assert packed_bytes(leaf, {"w": False}) <= predict_bytes(leaf, {"w": False}) + 16


def test_zero_columns_and_extreme_scales_are_finite():
    leaf = {"w": np.array([[0.0, 1e-30, 1e4], [0.0, -1e-30, -1e4]])}
    assert packed_bytes(leaf, {"w": False}) > 8
