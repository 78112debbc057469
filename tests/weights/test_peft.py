"""Adapters over a Llama, beside the logits that PEFT and transformers computed for the same tensors.

The model around the weights is written here, in numpy; only the adapted products are the package's. So this is about
the arithmetic of the kinds; reading such folders is another matter.
"""

import dataclasses
import json
import os
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from freezejax.roles import Role, leaves
from freezejax.weights import DoraWeight, LoraWeight, MapWeight, RandomMap, VeraWeight, linear, merge

GOLDEN = Path(os.environ.get("FREEZEJAX_SHARED", Path(__file__).parents[3] / "shared")) / "golden"
FOLDERS = ("peft_llama_lora", "peft_llama_rslora_pattern", "peft_llama_dora", "peft_llama_vera")
pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="no golden/: set FREEZEJAX_SHARED to the folder that has it"
)


def tensors(path):
    """Float32 tensors of a safetensors file by name."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        found[name] = np.frombuffer(content[begin:end], np.float32).reshape(entry["shape"])
    return found


def drawn(matrix):
    """A map that was drawn, by another generator than ours: PEFT stores what its seed gave."""
    return MapWeight(None, jnp.asarray(matrix), RandomMap(matrix.shape, "rademacher", "none"))


def of_pattern(config, kind, name, default):
    """PEFT's `rank_pattern` and `alpha_pattern`: the first that the module's name ends with."""
    return next((value for key, value in config[kind].items() if re.match(rf"(.*\.)?({key})$", name)), default)


def adapted(folder):
    """Every kernel of the model as the weight [in, out] that the folder's adapters make of it."""
    base = tensors(GOLDEN / "hf_llama_tiny" / "model.safetensors")
    adapter = tensors(GOLDEN / folder / "adapter_model.safetensors")
    config = json.loads((GOLDEN / folder / "adapter_config.json").read_text(encoding="utf-8"))
    weights = {name.removesuffix(".weight"): jnp.asarray(x.T if "proj" in name else x) for name, x in base.items()}
    part = lambda name, field: adapter.get(f"base_model.model.{name}.{field}")  # noqa: E731
    for name in list(weights):
        if (d := part(name, "vera_lambda_d")) is not None:
            a, b = (drawn(adapter[f"base_model.vera_{side}"].T) for side in "AB")
            weights[name] = VeraWeight(weights[name], a, jnp.asarray(d), b, jnp.asarray(part(name, "vera_lambda_b")))
        elif (a := part(name, "lora_A.weight")) is not None:
            alpha = float(of_pattern(config, "alpha_pattern", name, config["lora_alpha"]))
            sides = (jnp.asarray(x.T) for x in (a, part(name, "lora_B.weight")))
            kept = (weights[name], *sides, alpha, config["use_rslora"])
            magnitude = part(name, "lora_magnitude_vector")
            assert config["use_dora"] == (magnitude is not None)
            weights[name] = LoraWeight(*kept) if magnitude is None else DoraWeight(*kept, jnp.asarray(magnitude))
    return weights


def llama(weights, tokens_BxT):
    """Logits [B, T, V] of the tiny Llama: 4 heads over 2 key-value heads of 16, RoPE 1e4, SwiGLU, an untied head."""
    product = lambda x, name: np.asarray(linear(jnp.asarray(x, jnp.float32), weights[name]), np.float64)  # noqa: E731
    norm = lambda x, name: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(weights[name])  # noqa: E731
    B, T = tokens_BxT.shape
    angles = np.arange(T)[:, None] * 1e4 ** (-np.arange(8) / 8)[None]
    cos, sin = (np.tile(turn(angles), 2)[None, :, None] for turn in (np.cos, np.sin))
    rotate = lambda x: x * cos + np.concatenate([-x[..., 8:], x[..., :8]], -1) * sin  # noqa: E731
    x = np.asarray(weights["model.embed_tokens"], np.float64)[tokens_BxT]
    for layer in ("model.layers.0", "model.layers.1"):
        h = norm(x, f"{layer}.input_layernorm")
        q, k, v = (product(h, f"{layer}.self_attn.{part}_proj").reshape(B, T, -1, 16) for part in "qkv")
        q, k, v = rotate(q), np.repeat(rotate(k), 2, axis=2), np.repeat(v, 2, axis=2)
        scores = np.einsum("bthd,bshd->bhts", q, k) / 4 + np.where(np.tri(T), 0, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + product(np.einsum("bhts,bshd->bthd", shares, v).reshape(B, T, -1), f"{layer}.self_attn.o_proj")
        h = norm(x, f"{layer}.post_attention_layernorm")
        gate, up = (product(h, f"{layer}.mlp.{part}_proj") for part in ("gate", "up"))
        x = x + product(gate / (1 + np.exp(-gate)) * up, f"{layer}.mlp.down_proj")
    return norm(x, "model.norm") @ np.asarray(weights["lm_head"], np.float64).T


@pytest.fixture(params=FOLDERS)
def case(request):
    expected = dict(np.load(GOLDEN / request.param / "expected.npz"))
    return adapted(request.param), expected, expected["input_ids"]


def test_adapted_and_merged_models_give_pefts_logits(case):
    weights, expected, tokens = case
    found = llama(weights, tokens)
    np.testing.assert_allclose(found, expected["logits"], atol=1e-4)
    np.testing.assert_allclose(llama(merge(weights), tokens), expected["merged_logits"], atol=1e-4)
    # Counterpart: the adapters matter.
    plain = {name: getattr(weight, "base", weight) for name, weight in weights.items()}
    assert np.abs(llama(plain, tokens) - expected["logits"]).max() > 1e-2


def test_as_many_numbers_are_trained(case):
    weights, expected, _ = case
    beside = [leaf for leaf in leaves(weights) if leaf.role in (Role.ADAPTER, Role.GAIN)]
    assert sum(leaf.value.size for leaf in beside) == expected["trainable"]


def test_counterpart_a_scale_that_was_lost_is_seen():
    weights, expected = adapted(FOLDERS[1]), np.load(GOLDEN / FOLDERS[1] / "expected.npz")
    lost = lambda weight: dataclasses.replace(weight, rank_stabilised=False) if callable(weight) else weight  # noqa: E731
    off = {name: lost(weight) for name, weight in weights.items()}
    assert np.abs(llama(off, expected["input_ids"]) - expected["logits"]).max() > 1e-2
