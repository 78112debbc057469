"""GGUF files: written by the package `gguf` as converters do, and a real one where it is at hand."""

import os
from pathlib import Path
from types import SimpleNamespace

import gguf
import jax
import numpy as np
import pytest

from freezejax import models
from freezejax.data import tokenizer_at
from freezejax.errors import UserError
from freezejax.models import importers
from freezejax.models.gguf import Dequantized

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(os.environ.get("FREEZEJAX_SHARED", ROOT.parent / "shared")) / "golden"
SMOLLM2 = Path(os.environ.get("FREEZEJAX_SMOLLM2", ROOT / "smollm2")) / "SmolLM2-135M-Instruct.Q4_1.gguf"
LLAMA = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GPT2 = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def gguf_name(name, table):
    stem, last = name.rsplit(".", 1)
    if stem in table:
        return f"{table[stem]}.{last}"
    _, _, block, part = stem.split(".", 3)
    return f"blk.{block}.{table[part]}.{last}"


def interleaved(array, heads):
    """Rows of each head as llama.cpp's converter puts them: the two of a rotated pair side by side."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def write(path, model, params):
    """The model as a converter writes it, its matrices as Q8_0 where `rows` fit, else float32."""
    c, state, kind = model.config, importers.state_to_torch(model, params), path.stem
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(c.num_layers)
    writer.add_embedding_length(c.model_dim)
    writer.add_head_count(c.num_heads)
    writer.add_feed_forward_length(round(c.mlp_mult * c.model_dim))
    if kind == "llama":
        writer.add_head_count_kv(c.num_kv_heads)
        writer.add_key_length(c.head_dim)
        writer.add_layer_norm_rms_eps(c.norm_eps)
        writer.add_rope_freq_base(c.rope_base)
    else:
        writer.add_context_length(c.positions)
        writer.add_layer_norm_eps(c.norm_eps)
    for name, array in state.items():
        if kind == "llama" and ("q_proj" in name or "k_proj" in name):
            array = interleaved(array, c.num_heads if "q_proj" in name else c.num_kv_heads)
        if kind == "gpt2" and array.ndim == 2 and ".h." in name:
            array = array.T
        writer.add_tensor(gguf_name(name, LLAMA if kind == "llama" else GPT2), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_converted_model_is_the_model(family, small, tmp_path, tokens):
    changes = {"rope_base": 500.0} if family == "llama" else {}
    model, params = small(family, **changes)
    write(tmp_path / f"{family}.gguf", model, params)
    apply, loaded = models.load_pretrained(tmp_path / f"{family}.gguf")
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    np.testing.assert_allclose(apply(loaded, tokens), model.apply(params, tokens), atol=2e-5)


def test_counterpart_rows_in_the_converters_order_are_another_model(small, tmp_path, tokens, monkeypatch):
    model, params = small("llama")
    write(tmp_path / "llama.gguf", model, params)
    monkeypatch.setattr(models.gguf, "_heads", lambda name, config: 0)
    apply, loaded = models.load_pretrained(tmp_path / "llama.gguf")
    assert np.abs(apply(loaded, tokens) - model.apply(params, tokens)).max() > 1e-2


def test_quantized_blocks_are_dequantized(tmp_path):
    model = models.build(
        "llama", vocab_size=32, num_layers=1, model_dim=32, num_heads=2, num_kv_heads=1, head_dim=16, mlp_mult=2
    )
    params = model.init(jax.random.key(0))
    write(tmp_path / "llama.gguf", model, params)
    reader = gguf.GGUFReader(tmp_path / "llama.gguf")
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32"}
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    for name, field in reader.fields.items():
        if name.startswith("llama."):
            writer.add_key_value(name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        kind = gguf.GGMLQuantizationType.Q8_0 if len(tensor.shape) == 2 else gguf.GGMLQuantizationType.F32
        values = np.array(tensor.data).reshape(tensor.shape[::-1].tolist())
        writer.add_tensor(tensor.name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _, loaded = models.load_pretrained(tmp_path / "q.gguf")
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert ours.dtype == np.float32
        assert 0 <= np.abs(ours - theirs).max() <= np.abs(theirs).max() / 127
    assert any(
        (ours != theirs).any() for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True)
    )


def test_a_kind_of_quantization_that_the_package_cannot_undo_is_named():
    """Q8_1, which it lists; the counterpart Q8_0 it undoes."""

    def tensor(kind):
        data = np.zeros(gguf.GGML_QUANT_SIZES[kind][1], np.uint8)
        return Dequantized(
            SimpleNamespace(name="w", data=data, tensor_type=kind, shape=np.array([32])), np.asarray, (32,)
        )

    assert np.asarray(tensor(gguf.GGMLQuantizationType.Q8_0)).shape == (32,)
    with pytest.raises(UserError, match="tensor 'w': package gguf cannot dequantize Q8_1"):
        np.asarray(tensor(gguf.GGMLQuantizationType.Q8_1))


def _file(tmp_path, small):
    model, params = small("llama")
    write(tmp_path / "llama.gguf", model, params)
    return tmp_path / "llama.gguf"


def test_what_is_wrong_with_a_file_is_told_in_one_line(small, tmp_path):
    path = _file(tmp_path, small)
    whole = path.read_bytes()
    for content in (b"", whole[:3], whole[:200], whole[:-100], b"PK" + whole[2:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"llama\.gguf: not a whole GGUF file") as error:
            models.load_pretrained(path)
        assert "\n" not in str(error.value)
    path.write_bytes(whole.replace(b"general.architecture", b"general.architectures"[:20].replace(b"c", b"k")))
    with pytest.raises(UserError, match=r"no field 'general\.architecture'"):
        models.load_pretrained(path)
    path.write_bytes(whole.replace(b"blk.1.ffn_up", b"blk.1.ffn_xp"))
    with pytest.raises(
        UserError, match=r"the model has no place for 'blk\.1\.ffn_xp\.weight'; nearest: blk\.1\.ffn_up"
    ):
        models.load_pretrained(path)
    with pytest.raises(UserError, match=r"nothing\.gguf: no such file"):
        models.load_pretrained(tmp_path / "nothing.gguf")


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(UserError, match=r"reading \.gguf needs the package gguf: pip install 'freezejax\[gguf\]'"):
        models.load_pretrained(tmp_path / "a.gguf")


@pytest.mark.skipif(not SMOLLM2.exists(), reason="no SmolLM2: bash launch/get_smollm2.sh")
@pytest.mark.skipif(not GOLDEN.exists(), reason="no golden/: set FREEZEJAX_SHARED to the folder that has it")
def test_smollm2_has_the_loss_and_the_tokens_of_another_implementation():
    with np.load(GOLDEN / "smollm2_135m_expected.npz") as file:
        expected = dict(file)
    tokenizer = tokenizer_at(SMOLLM2)
    np.testing.assert_array_equal(tokenizer.encode(str(expected["text"])), expected["input_ids"][0])
    assert tokenizer.decode(expected["input_ids"][0]) == str(expected["text"])
    apply, params = models.load_pretrained(SMOLLM2)
    logits = jax.jit(apply)(params, expected["input_ids"])
    loss = models.cross_entropy(logits[:, :-1], expected["input_ids"][:, 1:]).mean()
    assert float(loss) == pytest.approx(float(expected["next_token_loss"]), abs=1e-4)
    np.testing.assert_array_equal(logits[0].argmax(-1), expected["argmax"])
    np.testing.assert_allclose(logits[0, -1], expected["last_logits"], atol=1e-3)
