"""Cached generation: the logits and tokens of the whole forward pass, whatever the cut, the padding and the family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezejax import models
from freezejax.errors import UserError
from freezejax.models.generation import left_padded

PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5]]
KEY = jax.random.key(0)


def last_logits(model, params, prompt):
    """Of a forward pass without a cache; what comes after the prompt changes nothing, and saves compilations."""
    tokens = np.array([[*prompt, *[0] * (16 - len(prompt))]], np.int32)
    return np.asarray(model.apply(params, tokens))[0, len(prompt) - 1]


def test_logits_after_padding_and_in_pieces_are_those_of_the_whole_prompt(family, small):
    model, params = small(family)
    tokens, starts = left_padded(PROMPTS, 13)
    wanted = np.stack([last_logits(model, params, prompt) for prompt in PROMPTS])
    extend = jax.jit(model.extend)
    for cuts in ([7], [1] * 7, [3, 4]):
        past, at = model.past(starts, 9, jnp.float32), 0
        for size in cuts:
            logits, past = extend(params, tokens[:, at : at + size], past)
            at += size
        np.testing.assert_allclose(logits, wanted, atol=3e-5)
        assert int(past.length) == 7


def greedy(model, params, prompt, count):
    """Without a cache: the whole text again for every token."""
    text = list(prompt)
    for _ in range(count):
        text.append(int(last_logits(model, params, text).argmax()))
    return text[len(prompt) :]


def test_greedy_text_is_that_of_the_whole_forward_pass(family, small):
    model, params = small(family)
    found = models.generate(model, params, PROMPTS, tokens=6)
    assert found == [greedy(model, params, prompt, 6) for prompt in PROMPTS]
    assert len({tuple(row) for row in found}) > 1


def test_prompts_that_end_around_a_chunk_of_the_scan(small):
    """Of 3, 4 and 5 tokens, in chunks of 4."""
    model, params = small("nemotron_h")
    prompts = [[3, 1, 4], [1, 5, 9, 2], [6, 5, 3, 5, 8]]
    tokens, starts = left_padded(prompts, 13)
    wanted = np.stack([last_logits(model, params, prompt) for prompt in prompts])
    extend = jax.jit(model.extend)
    for cuts in ([5], [4, 1]):
        past, at = model.past(starts, 6, jnp.float32), 0
        for size in cuts:
            logits, past = extend(params, tokens[:, at : at + size], past)
            at += size
        np.testing.assert_allclose(logits, wanted, atol=3e-5)


def test_counterpart_padding_that_is_seen_changes_the_logits(family, small):
    model, params = small(family)
    tokens, starts = left_padded(PROMPTS, 13)
    seen, _ = model.extend(params, jnp.asarray(tokens), model.past(0 * starts, 9, jnp.float32))
    assert np.abs(seen[1] - last_logits(model, params, PROMPTS[1])).max() > 1e-2


def test_an_ensemble_generates_what_its_members_say_together(small):
    (one, first), (two, second) = small("geglu"), small("gpt2", num_layers=3)
    members = [{"family": "geglu", **vars(one.config)}, {"family": "gpt2", **vars(two.config)}]
    model = models.build("ensemble", members=members)
    params = models.ensemble.join([first, second])
    found = models.generate(model, params, PROMPTS, tokens=4)
    assert found == [greedy(model, params, prompt, 4) for prompt in PROMPTS]


@settings(max_examples=8)
@given(st.integers(0, 2**31 - 1), st.sampled_from([0, 1, 3]))
def test_sampled_tokens_follow_the_logits(small, seed, top_k):
    model, params = small("geglu")
    rows = models.generate(
        model, params, [PROMPTS[0]] * 400, tokens=1, temperature=0.7, top_k=top_k, key=jax.random.key(seed)
    )
    logits = last_logits(model, params, PROMPTS[0]) / 0.7
    if top_k:
        logits = np.where(logits < np.sort(logits)[-top_k], -np.inf, logits)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    found = np.bincount([row[0] for row in rows], minlength=13) / len(rows)
    np.testing.assert_allclose(found, shares, atol=5 * np.sqrt(shares * (1 - shares) / len(rows)).max() + 1e-9)


def test_the_same_key_draws_the_same_text_and_another_another(small):
    model, params = small("llama")
    draw = lambda key: models.generate(model, params, PROMPTS, tokens=12, temperature=1.0, key=jax.random.key(key))  # noqa: E731
    assert draw(0) == draw(0) != draw(1)


def test_a_text_ends_before_its_stop(small):
    model, params = small("geglu")
    whole = models.generate(model, params, PROMPTS, tokens=8)
    stop = whole[0][3]
    for row, full in zip(models.generate(model, params, PROMPTS, tokens=8, stop=stop), whole, strict=True):
        assert row == (full[: full.index(stop)] if stop in full else full)


def test_weights_of_other_kinds_generate(small):
    config = vars(small("llama")[0].config)
    model = models.build("llama", **config, weights=[{"pattern": ".*/mlp/.*/kernel", "kind": "map"}])
    params = model.init(KEY)
    assert models.generate(model, params, PROMPTS[:1], tokens=3) == [greedy(model, params, PROMPTS[0], 3)]


@pytest.mark.parametrize("family", ["llama", "nemotron_h"])
def test_bfloat16_keeps_bfloat16(family, small):
    """But for the state of Mamba-2, which is float32."""
    model, params = small(family)
    tokens, starts = left_padded(PROMPTS, 13)
    logits, past = model.extend(
        params, jnp.asarray(tokens), model.past(starts, 9, jnp.bfloat16), compute_dtype=jnp.bfloat16
    )
    assert logits.dtype == jnp.float32
    kept = jax.tree_util.tree_leaves_with_path(past.kept)
    in_float32 = {
        jax.tree_util.keystr(path)[-len("state_BxHxPxN") :] for path, leaf in kept if leaf.dtype == jnp.float32
    }
    assert in_float32 == ({"state_BxHxPxN"} if family == "nemotron_h" else set())
    assert {leaf.dtype for _, leaf in kept} <= {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(logits[0], last_logits(model, params, PROMPTS[0]), atol=0.3)


BAD = {
    "no prompt": (([], {}), "expected prompts of at least one token each"),
    "an empty prompt": (([[1], []], {}), "expected prompts of at least one token each"),
    "a token too large": (([[13]], {}), "a prompt has a token outside of the vocabulary, 0 to 12"),
    "no key": (([[1]], {"temperature": 1.0}), "a temperature above 0 needs a key"),
    "below zero": (([[1]], {"temperature": -1.0}), "expected at least 0, 0 and 1"),
    "too long": (([[1]], {"tokens": 64}), "65 tokens with the longest prompt; this model has positions for 64"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_told_in_one_line(case, small):
    (prompts, options), message = BAD[case]
    model, params = small("gpt2")
    with pytest.raises(UserError, match=message):
        models.generate(model, params, prompts, **{"tokens": 2, **options})
