import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezejax.models import attention
from freezejax.models.attention import _forward_block, blocked_attention, causal_attention, fused_applies


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


@pytest.mark.parametrize("backward", [False, True])
def test_blocks_compute_five_eighths_of_the_scores(backward):
    """Switching the blocks off is seen in the compiled FLOPs."""
    (q, k, v), _ = random_qkv(1, 256, 2, 2, 16)

    def flops(blocks):
        attend = lambda *a: blocked_attention(*a, blocks)  # noqa: E731
        program = jax.grad(lambda *a: attend(*a).sum(), argnums=(0, 1, 2)) if backward else attend
        return jax.jit(program).lower(q, k, v).compile().cost_analysis()["flops"]

    assert flops(4) / flops(1) == pytest.approx(5 / 8, abs=0.02)


def transposed_matmuls(attend):
    """Batched matmuls of the gradient whose result runs over keys first: the form that is slow on a CPU."""
    length, dim = 256, 24
    (q, k, v), _ = random_qkv(1, length, 2, 2, dim)
    text = jax.jit(jax.grad(lambda *a: attend(*a).sum(), argnums=(0, 1, 2))).lower(q, k, v).as_text()
    return len(re.findall(rf"dot_general.*-> tensor<1x2x(?:1x)?{length}x{dim}xf32>", text))


def test_no_gradient_is_formed_from_transposed_scores():
    assert transposed_matmuls(blocked_attention) == 0


def test_counterpart_autodiff_does():
    def attend(q, k, v):  # scores over keys of the last block of queries, as blocks of queries have it
        scores = jnp.einsum("bthd,bshd->bhts", q[:, 192:], k)
        return jnp.einsum("bhts,bshd->bhtd", jax.nn.softmax(scores), v)

    assert transposed_matmuls(attend) > 0


def test_a_block_reads_keys_up_to_its_own_end():
    (q, k, v), _ = random_qkv(1, 6, 1, 1, 2)
    scaled, k_first, v_first = (x.transpose(0, 2, 1, 3) for x in (q / 2**0.5, k, v))
    out, powers, sums = _forward_block(scaled[:, :, None, 4:], k_first, v_first)
    np.testing.assert_allclose(out[0, 0, 0], plain(q, k, v)[0, 4:, 0], atol=1e-6)
    assert powers.shape == (1, 1, 1, 2, 6)
    assert powers[0, 0, 0, 0, 5] == 0
    np.testing.assert_allclose(powers.sum(axis=-1, keepdims=True), sums, rtol=1e-6)


CUDA, CPU, TPU = "PJRT C API\ncuda 12090", "<unknown>", "PJRT C API\nTFRT TPU v5e"


@pytest.mark.parametrize(
    ("version", "dtype", "head_dim", "wanted"),
    [
        (CUDA, jnp.bfloat16, 64, True),
        (CUDA, jnp.float16, 128, True),
        (CUDA, jnp.float32, 64, False),
        (CUDA, jnp.bfloat16, 12, False),
        (CUDA, jnp.bfloat16, 256, False),
        (CPU, jnp.bfloat16, 64, False),
        (TPU, jnp.bfloat16, 64, False),
        ("PJRT C API\nrocm 60300", jnp.bfloat16, 64, False),
    ],
)
def test_where_cudnn_applies(version, dtype, head_dim, wanted):
    assert fused_applies(version, dtype, head_dim) is wanted


def test_a_process_with_cudnn_still_lowers_the_blocked_form_for_other_platforms(monkeypatch):
    """The platform is that of the program, not of the process; cuDNN is played by a sine."""
    monkeypatch.setattr(attention, "fused_applies", lambda *_: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, **_: jnp.sin(q))
    (q, k, v), _ = random_qkv(1, 16, 2, 2, 8, jnp.bfloat16)

    def lowered(platform):
        loss = jax.jit(jax.grad(lambda q: causal_attention(q, k, v).astype(jnp.float32).sum()))
        return loss.trace(q).lower(lowering_platforms=(platform,)).as_text()

    assert "cosine" in lowered("cuda")
    assert "dot_general" not in lowered("cuda")
    for platform in ("cpu", "tpu"):
        assert "cosine" not in lowered(platform)
        assert "dot_general" in lowered(platform)
