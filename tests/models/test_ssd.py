"""The chunked scan of Mamba-2 against its recurrence, token by token in float64, in every corner of its chunks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezejax.models.ssd import ssd

CHUNK = 8


def made(T, seed=0, B=2, H=4, P=3, G=2, N=5):
    draw = np.random.default_rng(seed).standard_normal
    x, b, c, state = draw((B, T, H, P)), draw((B, T, G, N)), draw((B, T, G, N)), draw((B, H, P, N))
    return [np.float32(z) for z in (x, np.exp(draw((B, T, H)) - 2), -np.exp(draw(H)), b, c, state)]


def recurrence(x, dt, a, b, c, state):
    """Float64, one token after the other, one head after the other."""
    x, dt, a, b, c, state = (np.array(z, np.float64) for z in (x, dt, a, b, c, state))
    y, heads = np.zeros_like(x), x.shape[2] // b.shape[2]
    for t in range(x.shape[1]):
        for h in range(x.shape[2]):
            fade = np.exp(dt[:, t, h] * a[h])[:, None, None]
            new = np.einsum("b,bp,bn->bpn", dt[:, t, h], x[:, t, h], b[:, t, h // heads])
            state[:, h] = fade * state[:, h] + new
            y[:, t, h] = np.einsum("bpn,bn->bp", state[:, h], c[:, t, h // heads])
    return y, state


scan = jax.jit(functools.partial(ssd, chunk=CHUNK))


@pytest.mark.parametrize("T", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK - 1, 3 * CHUNK, 3 * CHUNK + 1])
def test_chunks_give_what_the_recurrence_gives(T):
    for found, wanted in zip(scan(*made(T)), recurrence(*made(T)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def test_counterpart_heads_that_read_another_group_are_noticed():
    x, dt, a, b, c, state = made(CHUNK + 1)
    wanted, _ = recurrence(x, dt, a, b, c, state)
    assert np.abs(scan(x, dt, a, b[:, :, ::-1], c, state)[0] - wanted).max() > 0.1


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.lists(st.sampled_from([1, 2, 7, 8, 9, 17]), min_size=1, max_size=3))
def test_a_text_in_pieces_is_the_whole_text(seed, pieces):
    x, dt, a, b, c, state = made(sum(pieces), seed)
    wanted, last = scan(x, dt, a, b, c, state)
    found, at = [], 0
    for size in pieces:
        part = slice(at, at + size)
        y, state = scan(x[:, part], dt[:, part], a, b[:, part], c[:, part], state)
        found.append(y)
        at += size
    np.testing.assert_allclose(np.concatenate(found, axis=1), wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(state, last, rtol=1e-4, atol=1e-4)


def test_a_token_of_step_zero_is_none():
    x, dt, a, b, c, state = made(12)
    dt[:, 4:7] = 0
    kept = np.r_[0:4, 7:12]
    y, last = scan(x, dt, a, b, c, state)
    wanted, wanted_last = scan(x[:, kept], dt[:, kept], a, b[:, kept], c[:, kept], state)
    np.testing.assert_allclose(y[:, kept], wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(last, wanted_last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pieces", [[17], [1, 7, 9], [9, 8]], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_are_their_own_tokens_in_the_recurrence(side, pieces):
    """Rows of 17, 9 and 3 tokens, the others of step 0; the counterpart is padding with steps of its own."""
    lengths, T = [17, CHUNK + 1, 3], 17
    x, dt, a, b, c, first = made(T, B=3)
    real = [slice(T - n, T) if side == "left" else slice(n) for n in lengths]
    masked = np.zeros_like(dt)
    for row, own in enumerate(real):
        masked[row, own] = dt[row, own]

    def in_pieces(dt):
        state, found, at = first, [], 0
        for size in pieces:
            part = slice(at, at + size)
            y, state = scan(x[:, part], dt[:, part], a, b[:, part], c[:, part], state)
            found.append(y)
            at += size
        return np.concatenate(found, axis=1), state

    (y, last), (_, seen) = in_pieces(masked), in_pieces(dt)
    for row, own in enumerate(real):
        one = slice(row, row + 1)
        wanted, state = recurrence(x[one, own], dt[one, own], a, b[one, own], c[one, own], first[one])
        np.testing.assert_allclose(y[one, own], wanted, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(last[one], state, rtol=2e-5, atol=2e-5)
        assert (np.abs(seen[one] - state).max() > 1e-2) == (lengths[row] < T)


def test_gradients_are_those_of_the_recurrence_and_finite_where_fades_overflow():
    """Steps of up to 60 and rates of up to 20: above the diagonal of a chunk the exponential would be infinite."""
    x, dt, a, b, c, state = made(2 * CHUNK + 3)
    dt[:, ::3] *= 200

    def token_by_token(x, dt, b, c, state):
        repeated = [jnp.repeat(z, 2, axis=2) for z in (b, c)]

        def one(state, token):
            x, dt, b, c = token
            fade = jnp.exp(dt * a[None])[..., None, None]
            state = state * fade + dt[..., None, None] * x[..., None] * b[..., None, :]
            return state, jnp.einsum("bhpn,bhn->bhp", state, c)

        last, y = jax.lax.scan(one, state, tuple(z.swapaxes(0, 1) for z in (x, dt, *repeated)))
        return y.swapaxes(0, 1), last

    def loss(of):
        return lambda *args: sum(
            jnp.vdot(part, jnp.cos(jnp.arange(part.size, dtype=jnp.float32))) for part in of(*args)
        )

    chunked = lambda x, dt, b, c, state: ssd(x, dt, jnp.asarray(a), b, c, state, CHUNK)  # noqa: E731
    args = [jnp.asarray(z) for z in (x, dt, b, c, state)]
    found, wanted = (jax.jit(jax.grad(loss(of), argnums=range(5)))(*args) for of in (chunked, token_by_token))
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())


def test_bfloat16_has_its_steps_and_state_in_float32():
    x, dt, a, b, c, state = made(2 * CHUNK)
    y, last = scan(
        *(jnp.asarray(z, jnp.bfloat16) if z is x or z is b or z is c else z for z in (x, dt, a, b, c, state))
    )
    assert (y.dtype, last.dtype) == (jnp.bfloat16, jnp.float32)
    wanted, wanted_last = recurrence(x, dt, a, b, c, state)
    assert np.linalg.norm(np.float32(y) - wanted) < 0.02 * np.linalg.norm(wanted)
    assert np.linalg.norm(last - wanted_last) < 0.02 * np.linalg.norm(wanted_last)


def test_work_grows_with_the_length_and_not_with_its_square():
    def flops(T):
        shapes = [jax.ShapeDtypeStruct(z.shape, z.dtype) for z in made(T)]
        return scan.lower(*shapes).compile().cost_analysis()["flops"]

    assert flops(32 * CHUNK) < 2.2 * flops(16 * CHUNK)
