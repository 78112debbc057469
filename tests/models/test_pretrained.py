"""Folders of other libraries: their logits and gradients, there and back, and every way in which a folder is wrong."""

import itertools
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from freezejax import models
from freezejax.errors import UserError
from freezejax.models import importers, tensors
from freezejax.models.pretrained import save_config
from freezejax.paths import by_path
from tests.models.payload import RAN, payload

SHARED = Path(os.environ.get("FREEZEJAX_SHARED", Path(__file__).resolve().parents[3] / "shared"))
FAMILIES = ("gpt2", "llama", "nemotron_h")


@pytest.fixture(params=FAMILIES)
def golden(request):
    """A folder that transformers wrote, with what it computes."""
    path = SHARED / "golden" / f"hf_{request.param}_tiny"
    if not path.exists():
        pytest.skip(f"no {path.name}: set FREEZEJAX_SHARED to the folder that has golden/")
    with np.load(path / "expected.npz") as file:
        return path, dict(file)


def test_logits_loss_and_gradients_are_those_of_transformers(golden):
    path, expected = golden
    # What computed this file limits the steps of Mamba-2 from below by `time_step_min`, a range of initial values;
    # models are trained with `time_step_limit`, which is what load_pretrained reads.
    model = models.model_of(path, **({"dt_min": 0.001} if "nemotron" in path.name else {}))
    apply, (_, params) = model.apply, models.load_pretrained(path)
    tokens = expected["input_ids"]

    def loss(params):
        logits = apply(params, tokens)
        return models.cross_entropy(logits[:, :-1], tokens[:, 1:]).mean(), logits

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5)
    assert float(value) == pytest.approx(float(expected["next_token_loss"]), abs=1e-5)
    norms = json.loads(str(expected["grad_norms"]))
    assert norms_of(model, gradients) == pytest.approx(norms, rel=1e-4)


def norms_of(model, gradients):
    """Of every tensor as transformers holds it in memory; the balance of experts is no parameter there."""
    names = importers.torch_names(model, gradients)
    norms = {names[path][0]: float(jnp.linalg.norm(leaf)) for path, leaf in by_path(gradients).items()}
    named = {re.sub(r"^backbone", "model", name): norm for name, norm in norms.items() if "e_score" not in name}
    return {re.sub(r"experts\.\*\.(\w+)\.weight", r"experts.\1", name): norm for name, norm in named.items()}


def test_a_golden_folder_comes_back_as_it_was(golden, tmp_path):
    path, _ = golden
    _, params = models.load_pretrained(path)
    models.save_pretrained(tmp_path / "out", models.model_of(path), params, like=path)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", path))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert json.loads((tmp_path / "out/config.json").read_text()) == json.loads((path / "config.json").read_text())
    assert (tmp_path / "out/generation_config.json").exists()


@pytest.fixture(params=FAMILIES)
def folder(request, small, tmp_path):
    """A small model of ours, saved."""
    model, params = small(request.param)
    models.save_pretrained(tmp_path / "model", model, params)
    return tmp_path / "model", model, params


def test_there_and_back_in_one_file_or_in_shards(folder, tmp_path, tokens):
    path, model, params = folder
    apply, loaded = models.load_pretrained(path)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    np.testing.assert_allclose(jax.jit(apply)(loaded, tokens), model.apply(params, tokens), atol=1e-6)
    models.save_pretrained(tmp_path / "shards", model, params, shard_bytes=8_000)
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 3
    assert all(path.stat().st_size < 10_000 for path in shards)
    jax.tree.map(np.testing.assert_array_equal, models.load_pretrained(tmp_path / "shards")[1], params)
    index = json.loads((tmp_path / "shards/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def test_bfloat16_stays_bfloat16_on_request(folder, tmp_path):
    _, model, params = folder
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    models.save_pretrained(tmp_path / "half", model, half)
    with safe_open(tmp_path / "half/model.safetensors", framework="numpy") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    for dtype, wanted in ((None, jnp.bfloat16), (jnp.float32, jnp.float32)):
        _, loaded = models.load_pretrained(tmp_path / "half", dtype=dtype)
        assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype(wanted)}
        for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(half), strict=True):
            np.testing.assert_array_equal(ours, theirs.astype(wanted))


def test_what_stands_over_a_kernel_is_saved_as_the_matrix_it_is(folder, tmp_path, tokens):
    _, model, _ = folder
    mlp, attn = {"nemotron_h": (".*/3/mixer/.*/kernel", ".*/2/mixer/.*/kernel")}.get(
        _name(model), (".*mlp/.*/kernel", ".*attn/.*/kernel")
    )
    rules = [{"pattern": mlp, "kind": "map"}, {"pattern": attn, "kind": "lora", "rank": 2}]
    adapted = models.build(_name(model), **vars(model.config), weights=rules)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 if leaf.dtype == jnp.float32 else leaf, adapted.init(jax.random.key(3))
    )
    models.save_pretrained(tmp_path / "merged", adapted, params)
    apply, loaded = models.load_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(apply(loaded, tokens), adapted.apply(params, tokens), atol=2e-5)


def _name(model):
    return next(name for name, family in models.FAMILIES.items() if family is model.family)


def test_a_checkpoint_without_the_head_and_with_buffers_is_the_same_model(small, tmp_path):
    """As the published GPT-2 is: no `transformer.` before its names, and the causal mask among the tensors."""
    model, params = small("gpt2")
    state = {
        name.removeprefix("transformer."): array for name, array in importers.state_to_torch(model, params).items()
    }
    state |= {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8), "lm_head.weight": state["wte.weight"]}
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, tmp_path / "model.safetensors")
    save_config(tmp_path, model)
    jax.tree.map(np.testing.assert_array_equal, models.load_pretrained(tmp_path)[1], params)


@pytest.mark.parametrize("where", ["rope_parameters", "rope_scaling"])
def test_llama3_positions_are_read_from_new_and_old_files(where, small, tmp_path):
    scaled = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_base": 500.0, "rope_original_positions": 90}
    model, _ = small("llama", **scaled)
    save_config(tmp_path, model)
    config = json.loads((tmp_path / "config.json").read_text())
    if where == "rope_scaling":
        rope = config.pop("rope_parameters")
        config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert models.model_of(tmp_path).config == model.config


def test_leaves_are_read_one_at_a_time(folder, monkeypatch):
    """Every tensor is asked for once, and none before the leaf of the one before it is in place."""
    path, model, _ = folder
    log = []
    read, put = tensors.Stored.__array__, jnp.asarray
    monkeypatch.setattr(
        tensors.Stored, "__array__", lambda self, *args, **kw: (log.append(self._name), read(self, *args, **kw))[1]
    )
    monkeypatch.setattr(importers.jnp, "asarray", lambda *args, **kw: (log.append("put"), put(*args, **kw))[1])
    models.load_pretrained(path)
    parts = [[*part] for is_put, part in itertools.groupby(log, "put".__eq__) if not is_put]
    leaves = [re.sub(r"experts\.\d+\.", "experts.*.", part[0]) for part in parts]
    assert leaves == [name for name, _ in importers.torch_names(model, model.abstract_params()).values()]
    assert [name for part in parts for name in part] == importers.tensor_names(model)


def edit_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    config.update(changes)
    (path / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def _edit_tensors(path, change):
    state = load_file(path / "model.safetensors")
    change(state)
    save_file(state, path / "model.safetensors")


def _truncate(path):
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def _pickled(path):
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(payload(path))


def _index(path, **places):
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


BAD = {
    "nothing there": (shutil.rmtree, "no such folder"),
    "no config": (lambda path: (path / "config.json").unlink(), "config.json: no such file"),
    "no JSON": (lambda path: (path / "config.json").write_text("{"), "config.json: not JSON"),
    "a list": (lambda path: (path / "config.json").write_text("[]"), "expected a JSON object, found a list"),
    "an unknown architecture": (
        lambda path: edit_config(path, architectures=["LamaForCausalLM"]),
        "config.json: architecture 'LamaForCausalLM' is not known; nearest: LlamaForCausalLM",
    ),
    "no list": (lambda path: edit_config(path, architectures=1.5), "architectures is 1.5; expected a list"),
    "no architecture": (lambda path: edit_config(path, architectures=None), "architecture '(none)' is not known"),
    "quantized": (lambda path: edit_config(path, quantization_config={"bits": 4}), "quantized weights are not read"),
    "a size that cannot be": (lambda path: edit_config(path, vocab_size=-1), "vocab_size=-1 must be an integer"),
    "another vocabulary": (lambda path: edit_config(path, vocab_size=14), "(13, 24); the config asks for (14, 24)"),
    "cut short": (_truncate, "model.safetensors: not a whole safetensors file"),
    "a pickle": (_pickled, "pytorch_model.bin is a pickle, which may run code and is never read"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "no model.safetensors and no model.safe"),
    "a tensor too many": (
        lambda path: _edit_tensors(path, lambda state: state.update({"lm_head.bias": np.ones(3, np.float32)})),
        "the model has no place for 'lm_head.bias'",
    ),
    "a tensor too few": (lambda path: _edit_tensors(path, lambda state: state.popitem()), "the state has no "),
    "whole numbers": (
        lambda path: _edit_tensors(path, lambda state: state.update({n: a.astype(np.int32) for n, a in state.items()})),
        "is int32; expected floats",
    ),
    "a shard that is not there": (lambda path: _index(path, a="m-1.safetensors"), "'m-1.safetensors' is no file of"),
    "a shard without its tensor": (lambda path: _index(path, a="model.safetensors"), "no tensor 'a', which model"),
    "a shard elsewhere": (lambda path: _index(path, a="../x.safetensors"), "'../x.safetensors' is no file of this"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_folder_is_told_in_one_line(case, folder):
    path, *_ = folder
    damage, message = BAD[case]
    damage(path)
    with pytest.raises(UserError) as error:
        models.load_pretrained(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (path / RAN).exists()


def test_counterpart_the_pickle_does_run_where_it_is_unpickled(tmp_path):
    pickle.loads(payload(tmp_path))
    assert (tmp_path / RAN).exists()


def test_of_one_family_alone(small, tmp_path):
    save_config(tmp_path, small("llama")[0])
    edit_config(tmp_path, hidden_act="gelu")
    with pytest.raises(UserError, match=r"config hidden_act='gelu': this family supports 'silu' only"):
        models.model_of(tmp_path)
    edit_config(tmp_path, hidden_act="silu", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4})
    with pytest.raises(UserError, match=r"LlamaConfig\.rope_scaling='yarn' must be 'default' or 'linear' or 'llama3'"):
        models.model_of(tmp_path)
    edit_config(tmp_path, hidden_size=...)
    with pytest.raises(UserError, match=r"config\.json: no 'hidden_size'"):
        models.model_of(tmp_path)


def test_a_folder_that_holds_a_model_is_not_written_over(folder):
    path, model, params = folder
    with pytest.raises(UserError, match="there is a model already; give a new folder"):
        models.save_pretrained(path, model, params)


def test_a_family_without_such_a_layout_says_which_have_one(small, tmp_path):
    model, params = small("geglu")
    with pytest.raises(UserError, match="those that have: gpt2, llama"):
        models.save_pretrained(tmp_path / "out", model, params)
