import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezejax.models.attention import _attend, blocked_attention, causal_attention, fused_applies


def plain(q_BxTxHxD, k_BxTxKxD, v_BxTxKxD):
    """The definition, in float32, key heads repeated."""
    q, k, v = (x.astype(jnp.float32) for x in (q_BxTxHxD, k_BxTxKxD, v_BxTxKxD))
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)), v)


def random_qkv(batch, length, heads, kv_heads, dim, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = (heads, kv_heads, kv_heads, heads)
    draws = [2 * jax.random.normal(k, (batch, length, h, dim)) for k, h in zip(keys, sizes, strict=True)]
    *qkv, weight = (x.astype(dtype) for x in draws)
    return qkv, weight.astype(jnp.float32)


def value_and_gradients(attend, qkv, weight):
    """Outputs, and the gradients of a weighted sum of them: an error anywhere shows."""

    @jax.jit
    def both(q, k, v):
        out, pullback = jax.vjp(attend, q, k, v)
        return out, pullback(weight.astype(out.dtype))

    return both(*qkv)


def assert_plain(attend, qkv, weight):
    ours, wanted = (value_and_gradients(f, qkv, weight) for f in (attend, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), ours, wanted)


@settings(max_examples=6)
@given(
    length=st.integers(1, 140),
    kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3]),
    blocks=st.integers(1, 4),
)
def test_equals_the_plain_form_in_value_and_gradients(length, kv_heads, group, blocks):
    qkv, weight = random_qkv(1, length, kv_heads * group, kv_heads, 4)
    assert_plain(lambda *a: blocked_attention(*a, blocks), qkv, weight)


@pytest.mark.parametrize("length", [128, 131])
def test_four_blocks_of_a_batch(length):
    qkv, weight = random_qkv(2, length, 4, 2, 8)
    assert_plain(causal_attention, qkv, weight)


def test_bfloat16_stays_near_float32():
    qkv, weight = random_qkv(1, 128, 2, 1, 8, jnp.bfloat16)
    ours = value_and_gradients(causal_attention, qkv, weight)
    wanted = value_and_gradients(plain, qkv, weight)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == jnp.bfloat16
        got, exact = (np.asarray(x, np.float32) for x in (a, b))
        assert np.linalg.norm(got - exact) / np.linalg.norm(exact) < 0.02


def test_scores_of_a_thousand_do_not_overflow():
    q = jnp.full((1, 3, 1, 2), 1000.0)
    assert bool(jnp.isfinite(causal_attention(q, q, jnp.ones_like(q))).all())


def test_the_future_has_exactly_zero_gradient():
    (q, k, v), _ = random_qkv(1, 130, 2, 2, 4)
    seen = 70
    grads = jax.jit(jax.grad(lambda k, v: causal_attention(q, k, v)[:, :seen].sum(), argnums=(0, 1)))(k, v)
    assert all(bool((g[:, seen:] == 0).all()) and bool((g[:, :seen] != 0).any()) for g in grads)


def test_attention_that_looks_ahead_is_caught():
    """The counterpart: the same check on attention without the mask."""
    (q, k, v), _ = random_qkv(1, 130, 2, 2, 4)
    grad = jax.grad(lambda v: jax.nn.dot_product_attention(q, k, v)[:, :70].sum())(v)
    assert bool((grad[:, 70:] != 0).any())


def test_blocks_compute_five_eighths_of_the_scores():
    """Switching the blocks off is seen in the compiled FLOPs."""
    (q, k, v), _ = random_qkv(1, 256, 2, 2, 16)

    def flops(blocks):
        compiled = jax.jit(lambda *a: blocked_attention(*a, blocks)).lower(q, k, v).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(4) / flops(1) == pytest.approx(5 / 8, abs=0.02)


def test_a_block_reads_keys_up_to_its_own_end():
    (q, k, v), _ = random_qkv(1, 6, 1, 1, 2)
    scaled = q.reshape(1, 6, 1, 1, 2) / 2**0.5
    np.testing.assert_allclose(_attend(scaled[:, 4:], k, v)[:, :, 0], plain(q, k, v)[:, 4:], atol=1e-6)


@pytest.mark.parametrize(
    ("platform", "dtype", "head_dim", "wanted"),
    [
        ("gpu", jnp.bfloat16, 64, True),
        ("gpu", jnp.float16, 128, True),
        ("gpu", jnp.float32, 64, False),
        ("gpu", jnp.bfloat16, 12, False),
        ("gpu", jnp.bfloat16, 256, False),
        ("cpu", jnp.bfloat16, 64, False),
        ("tpu", jnp.bfloat16, 64, False),
    ],
)
def test_where_cudnn_applies(platform, dtype, head_dim, wanted):
    assert fused_applies(platform, dtype, head_dim) is wanted
