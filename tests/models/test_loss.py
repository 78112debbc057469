"""The loss of a head whose logits are held once, in slices of positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freezejax import models
from freezejax.models import loss
from freezejax.models.loss import cross_entropy, head_cross_entropy
from freezejax.weights.linear import matmul

B, T, D, V = 2, 32, 16, 4096


def plain(x, embedding, targets, softcap):
    """The definition, all logits at once, differentiated by jax."""
    logits = (x @ embedding.astype(x.dtype).T).astype(jnp.float32)
    logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]


def sliced(x, embedding, targets, softcap):
    return head_cross_entropy(lambda x: matmul(x, embedding.T), x, targets, softcap)


def arguments(dtype=jnp.float32, vocab=V):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (B, T, D)).astype(dtype)
    return x, 0.5 * jax.random.normal(keys[1], (vocab, D)), jax.random.randint(keys[2], (B, T), 0, vocab)


@pytest.mark.parametrize(("slices", "length"), [(1, T), (8, T), (8, T - 1)])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_value_and_gradients_are_those_of_the_definition(softcap, slices, length, monkeypatch):
    """Of a length that the slices do not divide the last one is filled up."""
    monkeypatch.setattr(loss, "SLICE", B * length * 11 // slices)
    x, embedding, targets = arguments(vocab=11)
    x, targets = x[:, :length], targets[:, :length]
    assert loss.count_slices(length, B * length * 11) == slices
    weight = jnp.cos(jnp.arange(B * length, dtype=jnp.float32)).reshape(B, length)

    def both(form):
        return jax.value_and_grad(lambda *a: jnp.sum(form(*a, targets, softcap) * weight), (0, 1))(x, embedding)

    ours, wanted = both(sliced), both(plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), ours, wanted)


def held(form, dtype, softcap):
    """Temporaries of the compiled gradient, in arrays of float32 [B, T, V]."""
    shapes = jax.eval_shape(lambda: arguments(dtype))
    gradient = jax.grad(lambda x, e, t: jnp.mean(form(x, e, t, softcap)), argnums=(0, 1))
    return jax.jit(gradient).lower(*shapes).compile().memory_analysis().temp_size_in_bytes / (4 * B * T * V)


@pytest.mark.parametrize(("dtype", "softcap"), [(jnp.float32, 30.0), (jnp.float32, 0.0), (jnp.bfloat16, 30.0)])
def test_logits_are_never_held_twice(dtype, softcap, monkeypatch):
    monkeypatch.setattr(loss, "SLICE", B * T * V // 8)
    assert held(sliced, dtype, softcap) < 1.6
    # The counterparts: one slice, and the definition.
    monkeypatch.setattr(loss, "SLICE", B * T * V)
    assert held(sliced, dtype, softcap) >= 1.99
    assert held(plain, dtype, softcap) >= 2.99


@pytest.mark.parametrize("length", [256, 255])
def test_evaluation_never_holds_all_logits(own_family, length, monkeypatch):
    """A batch of 2^26 logits, compiled only: per-token losses take a fraction of float32 [B, T, V]."""
    rows, vocab, own = 8, 2**15, {"parameter_golf": {"num_kv_heads": 1}}.get(own_family, {})
    model = models.build(own_family, vocab_size=vocab, num_layers=1, model_dim=32, num_heads=2, **own)
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def arrays_held():
        """Temporaries in arrays of float32 [B, T, V], and whether one of that shape is among them."""
        score = jax.jit(lambda params, tokens: model.apply(params, tokens, targets_BxT=tokens))
        program = score.lower(model.abstract_params(), tokens).compile()
        held = program.memory_analysis().temp_size_in_bytes / (4 * rows * length * vocab)
        return held, f"f32[{rows},{length},{vocab}]" in program.as_text()

    held, whole = arrays_held()
    assert held < 0.6
    assert not whole
    monkeypatch.setattr(loss, "SLICE", rows * length * vocab)  # the counterpart: the head in one piece
    held, whole = arrays_held()
    assert held >= 1
    assert whole


def test_the_loss_of_a_model_is_the_cross_entropy_of_its_logits(family, small, tokens):
    model, params = small(family)
    targets = jnp.asarray(np.roll(tokens, -1, axis=1))
    wanted = cross_entropy(model.apply(params, tokens), targets)
    np.testing.assert_allclose(model.apply(params, tokens, targets_BxT=targets), wanted, atol=1e-5)


def test_the_softcap_of_the_parameter_golf_model_counts(small, tokens):
    """The counterpart: without the cap the loss is another."""
    model, params = small("parameter_golf", logit_softcap=0.5)
    other = models.build("parameter_golf", **{**vars(model.config), "logit_softcap": 30.0})
    one, two = (m.apply(params, tokens, targets_BxT=tokens).mean() for m in (model, other))
    assert abs(float(one - two)) > 0.01
