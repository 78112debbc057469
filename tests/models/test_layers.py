import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezejax.models import layers
from freezejax.models.loss import cross_entropy


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
def test_matmul_gradients_are_those_of_the_operator(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (5, 4))

    def gradients(multiply):
        return jax.grad(lambda x, w: jnp.sum(jnp.sin(multiply(x, w))), argnums=(0, 1))(x, kernel)

    ours, wanted = gradients(layers.matmul), gradients(lambda x, w: x @ w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, wanted)


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_dropout_keeps_the_expectation(rate):
    dropped = np.asarray(layers.dropout(jnp.ones((300, 301)), rate, jax.random.key(0)))
    assert (dropped == 0).mean() == pytest.approx(rate, abs=0.005)
    assert dropped.mean() == pytest.approx(1, abs=0.02)
    assert np.unique(dropped).tolist() == [0, pytest.approx(1 / (1 - rate), rel=1e-3)]


def test_dropout_decides_every_element_on_its_own():
    dropped = np.asarray(layers.dropout(jnp.ones((400, 400)), 0.5, jax.random.key(1))) > 0
    for other in (np.roll(dropped, 1, axis=1), np.roll(dropped, 1, axis=0), dropped.T):
        assert (dropped == other).mean() == pytest.approx(0.5, abs=0.02)


def test_dropout_at_rate_zero_is_the_array_itself():
    x = jnp.ones(3)
    assert layers.dropout(x, 0.0, jax.random.key(0)) is x
    assert layers.dropout(x, 0.5, None) is x


def test_dropout_keeps_the_dtype():
    assert layers.dropout(jnp.ones((2, 3), jnp.bfloat16), 0.5, jax.random.key(0)).dtype == jnp.bfloat16


@pytest.mark.parametrize("direction", [1, -1])
def test_rotated_scores_depend_on_the_distance_alone(direction):
    q, k = (jax.random.normal(jax.random.key(i), (1, 1, 1, 8)) for i in (0, 1))
    q, k = (layers.rotary(jnp.tile(x, (1, 9, 1, 1)), direction * layers.frequencies(100.0, 8))[0, :, 0] for x in (q, k))
    scores = np.asarray(q @ k.T)
    for offset in range(-8, 9):
        assert np.ptp(np.diagonal(scores, offset)) < 1e-4
    assert np.ptp(scores) > 0.1


def test_the_directions_differ_and_mirror_each_other():
    x = jax.random.normal(jax.random.key(0), (1, 5, 1, 4))
    forth, back = (layers.rotary(x, direction * layers.frequencies(100.0, 4)) for direction in (1, -1))
    assert float(jnp.abs(forth - back).max()) > 0.1
    np.testing.assert_allclose(layers.rotary(forth, -layers.frequencies(100.0, 4)), x, atol=1e-6)


def test_dims_beyond_the_rotated_pass_unchanged():
    x = jax.random.normal(jax.random.key(0), (1, 5, 2, 8))
    np.testing.assert_array_equal(layers.rotary(x, layers.frequencies(100.0, 4))[..., 4:], x[..., 4:])


def test_rms_norm_of_large_half_precision_values():
    """Squares of 1e3 overflow float16: the mean is formed in float32."""
    x = jnp.full((1, 4), 1000.0, jnp.float16)
    np.testing.assert_allclose(layers.rms_norm(x, 1e-6), np.ones((1, 4)), rtol=1e-3)


def assert_same_gradients(ours, plain, *args):
    weight = jnp.cos(jnp.arange(args[0].size, dtype=jnp.float32)).reshape(args[0].shape)

    def gradients(function):
        return jax.grad(lambda *a: jnp.sum(function(*a).astype(jnp.float32) * weight), argnums=range(len(args)))(*args)

    def close(a, b):
        assert a.dtype == b.dtype
        tolerance = 2e-5 if a.dtype == jnp.float32 else 0.05
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=tolerance, atol=tolerance)

    jax.tree.map(close, gradients(ours), gradients(plain))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)])
def test_rms_norm_gradients_are_those_of_its_definition(shape, dtype):
    x = (3 * jax.random.normal(jax.random.key(0), shape)).astype(dtype)
    scale = jax.random.normal(jax.random.key(1), shape[-1:])

    def plain(x, scale=None):
        wide = x.astype(jnp.float32)
        normed = wide / jnp.sqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + 1e-3)
        return (normed if scale is None else normed * jnp.expand_dims(scale, range(x.ndim - 1))).astype(dtype)

    assert_same_gradients(lambda x, scale: layers.rms_norm(x, 1e-3, scale), plain, x, scale)
    assert_same_gradients(lambda x: layers.rms_norm(x, 1e-3), plain, x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_geglu_and_its_gradients_are_those_of_its_definition(dtype):
    gate = jnp.linspace(-9, 9, 601).astype(dtype)
    up = jax.random.normal(jax.random.key(0), gate.shape).astype(dtype)
    plain = lambda gate, up: jax.nn.gelu(gate, approximate=False) * up  # noqa: E731
    np.testing.assert_allclose(
        np.float32(layers.geglu(gate, up)), np.float32(plain(gate, up)), atol=3e-6 if dtype == jnp.float32 else 0.1
    )
    assert_same_gradients(layers.geglu, plain, gate, up)


@given(shift=st.floats(-1e4, 1e4), spread=st.floats(0.1, 50))
def test_cross_entropy_is_the_log_likelihood(shift, spread):
    logits = np.float32(shift + spread * np.random.default_rng(0).normal(size=(2, 3, 5)))
    targets = np.array([[0, 4, 2], [1, 1, 3]], np.int32)
    wide = logits.astype(np.float64)
    log_sum = wide.max(-1) + np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1))
    wanted = log_sum - np.take_along_axis(wide, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(cross_entropy(logits, targets), wanted, rtol=1e-5, atol=4e-3)


def test_cross_entropy_gradient_is_probability_minus_hit():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
    targets = jnp.array([[0, 4, 2], [1, 1, 3]])
    weight = jnp.arange(6.0).reshape(2, 3)

    def plain(x):
        return -jnp.take_along_axis(jax.nn.log_softmax(x), targets[..., None], -1)[..., 0]

    ours = jax.grad(lambda x: jnp.sum(cross_entropy(x, targets) * weight))(logits)
    np.testing.assert_allclose(ours, jax.grad(lambda x: jnp.sum(plain(x) * weight))(logits), atol=1e-6)


def test_cross_entropy_of_half_precision_is_float32():
    logits = jnp.zeros((1, 1, 4), jnp.bfloat16)
    assert cross_entropy(logits, jnp.zeros((1, 1), jnp.int32)).dtype == jnp.float32
    assert jax.grad(lambda x: cross_entropy(x, jnp.zeros((1, 1), jnp.int32)).sum())(logits).dtype == jnp.bfloat16


def test_a_target_out_of_range_is_not_silent():
    assert bool(jnp.isnan(cross_entropy(jnp.zeros((1, 1, 4)), jnp.full((1, 1), 4))).all())


def test_the_gradient_of_a_float32_kernel_is_not_rounded_to_bfloat16():
    x_NxI, grad_NxO = (jax.random.normal(jax.random.key(i), (64, n), jnp.bfloat16) for i, n in enumerate((8, 12)))
    kernel_IxO = jax.random.normal(jax.random.key(2), (8, 12))

    def gradient(form):
        y, pull = jax.vjp(lambda kernel: form(x_NxI, kernel), kernel_IxO)
        assert y.dtype == jnp.bfloat16
        return pull(grad_NxO)[0]

    wide = x_NxI.astype(jnp.float32).T @ grad_NxO.astype(jnp.float32)
    np.testing.assert_allclose(gradient(layers.matmul), wide, rtol=1e-5, atol=1e-5)
    # The counterpart: by autodiff the product has the dtype of its arguments, and the cast comes after.
    rounded = gradient(lambda x, kernel: x @ kernel.astype(x.dtype))
    assert rounded.dtype == jnp.float32
    assert float(jnp.abs(rounded - wide).max()) > 1e-3
