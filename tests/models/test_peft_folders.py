"""PEFT's folders: their logits, what they train, there and back, and every way in which a folder is wrong."""

import json
import os
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

import freezejax
from freezejax import artifact, models
from freezejax.errors import UserError
from freezejax.paths import by_path
from freezejax.roles import Role, leaves
from tests.models.payload import RAN, payload

GOLDEN = Path(os.environ.get("FREEZEJAX_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "golden"
FOLDERS = {
    "peft_gpt2_lora": "hf_gpt2_tiny",
    "peft_llama_lora": "hf_llama_tiny",
    "peft_llama_rslora_pattern": "hf_llama_tiny",
    "peft_llama_dora": "hf_llama_tiny",
    "peft_llama_vera": "hf_llama_tiny",
    "peft_llama_lora_saved_head": "hf_llama_tiny",
}


@pytest.fixture(params=FOLDERS)
def golden(request):
    """An adapter's folder, its base's, what PEFT computed, and which leaves it trains beside the adapter."""
    folder = GOLDEN / request.param
    if not folder.exists():
        pytest.skip(f"no {folder.name}: set FREEZEJAX_SHARED to the folder that has golden/")
    with np.load(folder / "expected.npz") as file:
        return folder, GOLDEN / FOLDERS[request.param], dict(file), "lm_head/kernel" if "head" in folder.name else None


def test_logits_and_trainable_count_are_pefts(golden):
    folder, base, expected, also = golden
    apply, params = models.load_pretrained(base, folder)
    np.testing.assert_allclose(jax.jit(apply)(params, expected["input_ids"]), expected["logits"], atol=1e-5)
    rules = models.folder_rules(folder, models.model_of(base), params)
    mask = freezejax.trainable_mask(params, rules)
    assert rules == models.adapter_rules(params, also and re.escape(also))
    trained = sum(
        leaf.size for leaf, trains in zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True) if trains
    )
    assert trained == expected["trainable"]
    # Counterpart: the adapter matters.
    _, plain = models.load_pretrained(base)
    assert np.abs(apply(plain, expected["input_ids"]) - expected["logits"]).max() > 1e-2


def test_an_adapter_comes_back_bit_for_bit(golden, tmp_path):
    folder, base, expected, also = golden
    apply, params = models.load_pretrained(base, folder)
    models.save_adapter(tmp_path / "again", models.model_of(base), params, also=also)
    ours, theirs = (load_file(path / "adapter_model.safetensors") for path in (tmp_path / "again", folder))
    assert ours.keys() == theirs.keys()
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    configs = [json.loads((path / "adapter_config.json").read_text()) for path in (tmp_path / "again", folder)]
    for name in ("peft_type", "r", "fan_in_fan_out", "modules_to_save", "use_rslora", "use_dora", "lora_alpha"):
        assert configs[0].get(name) == configs[1].get(name), name
    _, again = models.load_pretrained(base, tmp_path / "again")
    np.testing.assert_array_equal(apply(again, expected["input_ids"]), apply(params, expected["input_ids"]))


def test_a_merged_model_and_an_artifact_give_the_same_logits(golden, tmp_path):
    folder, base, expected, _ = golden
    model, (apply, params) = models.model_of(base), models.load_pretrained(base, folder)
    models.save_pretrained(tmp_path / "merged", model, params)
    _, merged = models.load_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(apply(merged, expected["input_ids"]), expected["merged_logits"], atol=1e-5)
    artifact.save(tmp_path / "model.fjax", params, codec="int8")
    _, loaded, _ = artifact.load(tmp_path / "model.fjax", like=jax.eval_shape(lambda: params))
    jax.tree.map(np.testing.assert_array_equal, loaded, artifact.quantize(params, "int8"))
    assert np.abs(apply(loaded, expected["input_ids"]) - expected["logits"]).max() < 0.1


@pytest.fixture(params=["lora", "dora"])
def tuned(request, small, tmp_path):
    """A small model with an adapter that has taken a step, saved as base and adapter."""
    model, params = small("llama")
    models.save_pretrained(tmp_path / "base", model, params)
    options = {"kind": request.param, "rank_stabilised": True}
    rules = [
        {"pattern": r".*/0/attn/[qv]_proj/kernel", "rank": 2, "alpha": 3.0, **options},
        {"pattern": r".*/1/attn/q_proj/kernel", "rank": 3, "alpha": 5.0, **options},
    ]
    adapted = models.build("llama", **vars(model.config), weights=[rules[0]]).init(jax.random.key(1))
    other = models.build("llama", **vars(model.config), weights=[rules[1]]).init(jax.random.key(2))
    adapted["blocks"][1] = other["blocks"][1]
    adapted = jax.tree.map(lambda leaf: leaf + 0.05, adapted)
    plain = by_path(params)
    over = {leaf.path: leaf.role in (Role.ADAPTER, Role.GAIN) for leaf in leaves(adapted)}
    put = lambda path, leaf: leaf if over[path] else plain[path.removesuffix("/base")]  # noqa: E731
    adapted = freezejax.paths.map_with_paths(put, adapted)
    models.save_adapter(tmp_path / "adapter", model, adapted, base="a/model")
    return tmp_path, model, adapted


def test_another_random_history_loads_the_same_adapter(tuned, tokens):
    path, model, params = tuned
    apply, loaded = models.load_pretrained(path / "base", path / "adapter")
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    np.testing.assert_allclose(apply(loaded, tokens), model.apply(params, tokens), atol=1e-5)
    config = json.loads((path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "a/model"
    assert (config["r"], config["lora_alpha"]) == (2, 3.0)
    assert config["rank_pattern"] == {r"model\.layers\.1\.self_attn\.q_proj": 3}
    assert config["alpha_pattern"] == {r"model\.layers\.1\.self_attn\.q_proj": 5.0}


def test_a_reloaded_adapter_trains_and_its_base_does_not(tuned, tokens):
    path, _, _ = tuned
    apply, params = models.load_pretrained(path / "base", path / "adapter")
    mask = freezejax.trainable_mask(params, models.adapter_rules(params))
    tx = freezejax.freeze(optax.sgd(0.1), mask)
    gradient = freezejax.value_and_grad(lambda p: apply(p, tokens, targets_BxT=jnp.asarray(tokens)).mean(), mask)
    updates, _ = tx.update(gradient(params)[1], tx.init(params), params)
    stepped = freezejax.apply_updates(params, updates)
    for (name, before), after in zip(by_path(params).items(), jax.tree.leaves(stepped), strict=True):
        assert bool((before == after).all()) != (name.rsplit("/", 1)[-1] in ("a", "b", "magnitude")), name


def _edit(path, **changes):
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _tensors(path, change):
    state = load_file(path / "adapter_model.safetensors")
    change(state)
    save_file(state, path / "adapter_model.safetensors")


def pickled(path):
    (path / "adapter_model.safetensors").unlink()
    (path / "adapter_model.bin").write_bytes(payload(path))


QUERY = "base_model.model.model.layers.0.self_attn.q_proj"
BAD = {
    "nothing there": (shutil.rmtree, "adapter_config.json: no such file"),
    "another kind": (lambda path: _edit(path, peft_type="IA3"), "peft_type='IA3' is not read"),
    "patterns that are text": (lambda path: _edit(path, alpha_pattern="x"), "alpha_pattern='x': expected names of mod"),
    "a pattern that is none": (lambda path: _edit(path, rank_pattern={"(": 3}), "rank_pattern: a name is no pattern"),
    "an alpha that is text": (lambda path: _edit(path, lora_alpha="x"), "alpha_pattern='x': expected a number above 0"),
    "biases": (lambda path: _edit(path, bias="all"), "bias='all' is not read; expected 'none'"),
    "another rank": (lambda path: _edit(path, r=4), "where (4, 24) is expected"),
    "half an adapter": (
        lambda path: _tensors(path, lambda state: state.pop(f"{QUERY}.lora_B.weight")),
        "no lora_B for model.layers.0.self_attn.q_proj",
    ),
    "a module that is not there": (
        lambda path: _tensors(path, lambda s: s.update({f"{QUERY[:-6]}r_proj.lora_A.weight": np.ones(1)})),
        "the model has no module 'model.layers.0.self_attn.r_proj'; nearest: model.layers.0.self_attn.",
    ),
    "a tensor without a place": (
        lambda path: _tensors(path, lambda s: s.update({"base_model.model.score.weight": s[f"{QUERY}.lora_A.weight"]})),
        "the model has no place for 'score.weight'",
    ),
    "a pickle": (pickled, "adapter_model.bin is a pickle, which may run code and is never read; convert it to adapter"),
    "cut short": (
        lambda path: os.truncate(path / "adapter_model.safetensors", 300),
        "adapter_model.safetensors: not a whole safetensors file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_folder_is_told_in_one_line(case, tuned):
    path, *_ = tuned
    damage, message = BAD[case]
    damage(path / "adapter")
    with pytest.raises(UserError) as error:
        models.load_pretrained(path / "base", path / "adapter")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (path / "adapter" / RAN).exists()


def test_a_rank_that_is_too_high_to_save_anything_is_warned_of(small, tmp_path):
    model, params = small("llama")
    models.save_pretrained(tmp_path / "base", model, params)
    rules = [{"pattern": ".*/0/attn/q_proj/kernel", "kind": "lora", "rank": 20}]
    with pytest.warns(UserWarning, match="a low rank saves something below 14"):
        adapted = models.build("llama", **vars(model.config), weights=rules)
    models.save_adapter(tmp_path / "adapter", model, adapted.init(jax.random.key(1)))
    with pytest.warns(UserWarning, match="beside kernel 'blocks/0/attn/q_proj/kernel', 1,120 numbers, is more than"):
        models.load_pretrained(tmp_path / "base", tmp_path / "adapter")


def test_vera_without_its_projections_is_refused(tmp_path, small):
    model, params = small("llama")
    models.save_pretrained(tmp_path / "base", model, params)
    (tmp_path / "adapter").mkdir()
    state = {f"{QUERY}.vera_lambda_d": np.ones(4, np.float32), f"{QUERY}.vera_lambda_b": np.ones(32, np.float32)}
    save_file(state, tmp_path / "adapter/adapter_model.safetensors")
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({"peft_type": "VERA", "r": 4}))
    with pytest.raises(UserError, match="its projections are not in the file: save it with save_projection=True"):
        models.load_pretrained(tmp_path / "base", tmp_path / "adapter")


REFUSED = {
    "none at all": ([], "the parameters have no adapter"),
    "over a map": (
        [{"pattern": ".*q_proj/kernel", "kind": "map"}, {"pattern": ".*q_proj/kernel", "kind": "lora"}],
        "PEFT has no LoraWeight over what stands at 'blocks/0/attn/q_proj/kernel'",
    ),
    "a gain": ([{"pattern": ".*q_proj/kernel", "kind": "gain"}], "PEFT has no GainWeight"),
    "two kinds": (
        [{"pattern": ".*q_proj/kernel", "kind": "lora"}, {"pattern": ".*v_proj/kernel", "kind": "dora"}],
        "PEFT has one kind in a folder, here are 2",
    ),
}


@pytest.mark.filterwarnings("ignore:weights. what is trained beside")
@pytest.mark.parametrize("case", REFUSED)
def test_what_peft_has_no_words_for_is_not_written(case, small, tmp_path):
    rules, message = REFUSED[case]
    model = models.build("llama", **vars(small("llama")[0].config), weights=rules)
    with pytest.raises(UserError, match=message):
        models.save_adapter(tmp_path / "out", model, model.init(jax.random.key(0)))
    assert not (tmp_path / "out").exists()
