"""The models against their equations written out in numpy, sharing nothing with the package."""

import math

import jax
import numpy as np
import pytest

from freezejax import models
from freezejax.models import attention


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm(x, eps, scale=1.0):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def rope(x_TxD, base, dims, direction):
    out = x_TxD.copy()
    half = dims // 2
    for t in range(len(x_TxD)):
        for i in range(half):
            angle = direction * t * base ** (-2 * i / dims)
            a, b = x_TxD[t, i], x_TxD[t, i + half]
            out[t, i] = a * math.cos(angle) - b * math.sin(angle)
            out[t, i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def attend(q_TxD, k_TxD, v_TxD):
    scores = q_TxD @ k_TxD.T / math.sqrt(q_TxD.shape[1])
    scores[np.triu_indices(len(scores), 1)] = -np.inf
    return softmax(scores) @ v_TxD


def geglu(params, tokens_T, config):
    c, heads = config, config.num_heads
    embedding = params["tok_emb"]["embedding"]
    x = embedding[tokens_T]
    for i in range(c.num_layers):
        p = params["blocks"][i]
        q, k, v = np.split(norm(x, c.norm_eps, p["ln1"]["scale"]) @ p["attn"]["qkv"]["kernel"], 3, axis=1)
        out = []
        for q_h, k_h, v_h in zip(*(np.split(h, heads, axis=1) for h in (q, k, v)), strict=True):
            q_h, k_h = (rope(h, c.rope_base, c.rope_dims, 1) for h in (q_h, k_h))
            out.append(attend(q_h, k_h, v_h))
        x = x + np.concatenate(out, 1) @ p["attn"]["out"]["kernel"]
        h = norm(x, c.norm_eps, p["ln2"]["scale"])
        gate = h @ p["mlp"]["gate"]["kernel"]
        gelu = gate * np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))(gate)
        x = x + (gelu * (h @ p["mlp"]["up"]["kernel"])) @ p["mlp"]["down"]["kernel"]
    return norm(x, c.norm_eps, params["ln_f"]["scale"]) @ embedding.T


def parameter_golf(params, tokens_T, config):
    c, group = config, config.num_heads // config.num_kv_heads
    embedding = params["tok_emb"]["embedding"]
    x0 = x = norm(embedding[tokens_T], c.norm_eps)
    half = c.num_layers // 2
    pushed = []
    for i in range(c.num_layers):
        p = params["blocks"][i]
        if i >= half and i - half < half:
            x = x + params["skip_weights"][i - half] * pushed.pop()
        x = p["resid_mix"][0] * x + p["resid_mix"][1] * x0
        h = norm(x, c.norm_eps)
        q = np.split(h @ p["attn"]["c_q"]["kernel"], c.num_heads, axis=1)
        k = np.split(h @ p["attn"]["c_k"]["kernel"], c.num_kv_heads, axis=1)
        v = np.split(h @ p["attn"]["c_v"]["kernel"], c.num_kv_heads, axis=1)
        head = q[0].shape[1]
        q = [rope(norm(q_h, c.norm_eps), c.rope_base, head, -1) for q_h in q]
        k = [rope(norm(k_h, c.norm_eps), c.rope_base, head, -1) for k_h in k]
        out = [attend(q[h] * p["attn"]["q_gain"][h], k[h // group], v[h // group]) for h in range(c.num_heads)]
        x = x + p["attn_scale"] * (np.concatenate(out, 1) @ p["attn"]["proj"]["kernel"])
        hidden = np.maximum(norm(x, c.norm_eps) @ p["mlp"]["fc"]["kernel"], 0) ** 2
        x = x + p["mlp_scale"] * (hidden @ p["mlp"]["proj"]["kernel"])
        if i < half:
            pushed.append(x)
    z = norm(x, c.norm_eps) @ embedding.T
    return c.logit_softcap * np.tanh(z / c.logit_softcap)


def layer_norm(x, eps, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def affine(x, p):
    return x @ p["kernel"] + p.get("bias", 0.0)


def gpt2(params, tokens_T, config):
    c = config
    x = params["tok_emb"]["embedding"][tokens_T] + params["pos_emb"]["embedding"][: len(tokens_T)]
    for i in range(c.num_layers):
        p = params["blocks"][i]
        q, k, v = np.split(affine(layer_norm(x, c.norm_eps, p["ln1"]), p["attn"]["c_attn"]), 3, axis=1)
        heads = zip(*(np.split(part, c.num_heads, axis=1) for part in (q, k, v)), strict=True)
        x = x + affine(np.concatenate([attend(*head) for head in heads], 1), p["attn"]["c_proj"])
        h = affine(layer_norm(x, c.norm_eps, p["ln2"]), p["mlp"]["c_fc"])
        if c.activation == "gelu_new":
            h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        else:
            h = h * np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))(h)
        x = x + affine(h, p["mlp"]["c_proj"])
    head = params["tok_emb"]["embedding"].T if c.tied else params["lm_head"]["kernel"]
    return layer_norm(x, c.norm_eps, params["ln_f"]) @ head


def llama_frequency(config, i):
    """Of the i-th pair of a head's dims; llama3's as Meta's code has it, by wavelengths."""
    c = config
    plain = c.rope_base ** (-2 * i / c.head_dim)
    if c.rope_scaling == "linear":
        return plain / c.rope_factor
    if c.rope_scaling == "default":
        return plain
    wavelength = 2 * math.pi / plain
    if wavelength < c.rope_original_positions / c.rope_high_freq_factor:
        return plain
    if wavelength > c.rope_original_positions / c.rope_low_freq_factor:
        return plain / c.rope_factor
    smooth = (c.rope_original_positions / wavelength - c.rope_low_freq_factor) / (
        c.rope_high_freq_factor - c.rope_low_freq_factor
    )
    return (1 - smooth) * plain / c.rope_factor + smooth * plain


def turned(x_TxD, config):
    half = config.head_dim // 2
    angle = np.outer(np.arange(len(x_TxD)), [llama_frequency(config, i) for i in range(half)])
    a, b = x_TxD[:, :half], x_TxD[:, half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], 1)


def llama(params, tokens_T, config):
    c, group = config, config.num_heads // config.num_kv_heads
    x = params["tok_emb"]["embedding"][tokens_T]
    for i in range(c.num_layers):
        p = params["blocks"][i]
        h = norm(x, c.norm_eps, p["ln1"]["scale"])
        q = np.split(affine(h, p["attn"]["q_proj"]), c.num_heads, axis=1)
        k, v = (np.split(affine(h, p["attn"][f"{n}_proj"]), c.num_kv_heads, axis=1) for n in "kv")
        out = [attend(turned(q[j], c), turned(k[j // group], c), v[j // group]) for j in range(c.num_heads)]
        x = x + affine(np.concatenate(out, 1), p["attn"]["o_proj"])
        h = norm(x, c.norm_eps, p["ln2"]["scale"])
        gate = affine(h, p["mlp"]["gate_proj"])
        x = x + affine(gate / (1 + np.exp(-gate)) * affine(h, p["mlp"]["up_proj"]), p["mlp"]["down_proj"])
    head = params["tok_emb"]["embedding"].T if c.tied else params["lm_head"]["kernel"]
    return norm(x, c.norm_eps, params["ln_f"]["scale"]) @ head


def logits_of(reference, params, tokens_BxT, config):
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    return np.stack([reference(wide, row, config) for row in tokens_BxT])


CASES = [
    (geglu, "geglu", {}),
    (geglu, "geglu", {"num_layers": 1, "num_heads": 3, "mlp_mult": 1.5, "rope_dims": 8, "norm_eps": 1e-2}),
    (parameter_golf, "parameter_golf", {}),
    (parameter_golf, "parameter_golf", {"num_layers": 1, "num_kv_heads": 4}),
    (parameter_golf, "parameter_golf", {"num_layers": 4, "num_kv_heads": 1, "mlp_mult": 1.25}),
    (parameter_golf, "parameter_golf", {"num_layers": 5, "logit_softcap": 2.0, "rope_base": 100.0}),
    (gpt2, "gpt2", {}),
    (gpt2, "gpt2", {"num_layers": 1, "tied": False, "activation": "gelu", "mlp_mult": 1.5, "norm_eps": 1e-2}),
    (llama, "llama", {}),
    (llama, "llama", {"tied": True, "attention_bias": True, "mlp_bias": True, "num_kv_heads": 1, "head_dim": 6}),
    (llama, "llama", {"rope_scaling": "linear", "rope_factor": 4.0, "rope_base": 100.0}),
    (llama, "llama", {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_base": 100.0, "rope_original_positions": 90}),
]


@pytest.mark.parametrize(("reference", "family", "changes"), CASES)
def test_logits_are_those_of_the_equations(reference, family, changes, small, tokens):
    model, params = small(family, **changes)
    wanted = logits_of(reference, params, tokens, model.config)
    np.testing.assert_allclose(model.apply(params, tokens), wanted, atol=3e-5)


@pytest.mark.parametrize(
    ("reference", "family"),
    [(geglu, "geglu"), (parameter_golf, "parameter_golf"), (gpt2, "gpt2"), (llama, "llama")],
)
def test_every_leaf_matters_to_the_comparison(reference, family, small, tokens):
    """The counterpart: a change of about 10 % in any one leaf of the reference breaks the agreement."""
    model, params = small(family)
    ours = np.asarray(model.apply(params, tokens[:1]))
    leaves, treedef = jax.tree.flatten(params)
    draw = np.random.default_rng(0).normal
    for i, leaf in enumerate(leaves):
        moved = treedef.unflatten([*leaves[:i], leaf * (1 + 0.1 * draw(size=leaf.shape)), *leaves[i + 1 :]])
        difference = np.abs(ours - logits_of(reference, moved, tokens[:1], model.config)).max()
        assert difference > 3e-4, jax.tree_util.tree_leaves_with_path(params)[i][0]


def test_blocks_of_queries_are_also_the_equations(small, monkeypatch):
    """Long enough for four blocks, and not a multiple of four."""
    monkeypatch.setattr(attention, "MIN_QUERIES", 2)
    cached, params = small("parameter_golf", num_layers=1)
    model = models.build("parameter_golf", **vars(cached.config))
    rows = np.random.default_rng(3).integers(0, 13, (1, 11), dtype=np.int32)
    wanted = logits_of(parameter_golf, params, rows, model.config)
    np.testing.assert_allclose(jax.jit(model.apply)(params, rows), wanted, atol=3e-5)
