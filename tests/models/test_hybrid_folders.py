"""Folders of hybrid models: near what transformers computes, their limits of steps, what training one part changes."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import freezejax
from freezejax import models
from freezejax.models import tensors
from freezejax.roles import is_weight
from freezejax.weights import recast
from freezejax.weights.linear import whole
from tests.models.test_pretrained import SHARED, edit_config, norms_of


def test_a_hybrid_model_as_its_config_says_is_near_what_transformers_computes():
    path = SHARED / "golden" / "hf_nemotron_h_tiny"
    if not path.exists():
        pytest.skip("no hf_nemotron_h_tiny: set FREEZEJAX_SHARED to the folder that has golden/")
    model, (apply, params) = models.model_of(path), models.load_pretrained(path)
    with np.load(path / "expected.npz") as file:
        expected = dict(file)
    tokens = expected["input_ids"]

    def loss(params):
        logits = apply(params, tokens)
        return models.cross_entropy(logits[:, :-1], tokens[:, 1:]).mean(), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    # One step of eight heads is below its time_step_min.
    assert 1e-5 < np.abs(logits - expected["logits"]).max() < 1e-4
    found, wanted = norms_of(model, gradients), json.loads(str(expected["grad_norms"]))
    bias = "model.layers.0.mixer.dt_bias"  # there it has no part in that step, here it has
    assert found.pop(bias) == pytest.approx(wanted.pop(bias), rel=1e-2)
    assert found == pytest.approx(wanted, rel=1e-3)


def test_the_limits_of_steps_are_saved_and_what_an_older_file_says_of_them_is_not_kept(small, tmp_path, tokens):
    one = {"pattern": "M", "num_layers": 1}
    limits = {"below": {"dt_min": 0.5}, "above": {"dt_max": 0.5}, "both": {"dt_min": 0.25, "dt_max": 0.5}, "none": {}}
    for name, limit in limits.items():
        model, params = small("nemotron_h", **one, **limit)
        models.save_pretrained(tmp_path / name, model, params)
        apply, loaded = models.load_pretrained(tmp_path / name)
        assert models.model_of(tmp_path / name).config == model.config
        if name in ("above", "none"):
            limits[name] = apply(loaded, tokens)
            np.testing.assert_allclose(limits[name], model.apply(params, tokens), atol=1e-5)
    assert np.abs(limits["above"] - limits["none"]).max() > 1e-3
    edit_config(tmp_path / "both", attention_head_dim=16, head_dim=..., layers_block_type=...)
    edit_config(tmp_path / "both", hybrid_override_pattern="M", note="kept")
    assert models.model_of(tmp_path / "both").config.head_dim == 16
    model, params = small("nemotron_h", **one)
    models.save_pretrained(tmp_path / "other", model, params, like=tmp_path / "both")
    assert models.model_of(tmp_path / "other").config == model.config
    said = json.loads((tmp_path / "other/config.json").read_text())
    assert said["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    assert said["note"] == "kept"
    assert not said.keys() & {"attention_head_dim", "hybrid_override_pattern"}


ONE_EXPERT = [{"pattern": ".*/experts/up_proj/kernel", "kind": "each"}]
TRAINED = {  # what trains, and the tensors that it is
    "out_proj": (r".*/out_proj(/.*)?", r".*\.out_proj\..*"),
    "shared_experts": (r".*/shared_experts(/.*)?", r".*\.shared_experts\..*"),
    "one expert": (r".*/experts/up_proj/kernel/3", r".*\.experts\.3\.up_proj\..*"),
}


@pytest.mark.parametrize(
    ("trained", "dtype"), [("out_proj", "float32"), ("shared_experts", "bfloat16"), ("one expert", "bfloat16")]
)
def test_what_is_trained_alone_is_all_that_changes_in_a_hybrid_folder(trained, dtype, small, tmp_path):
    """Load, train one type of module or one expert, save, load: all else keeps its bits, in transformers' layout."""
    rule, changes = TRAINED[trained]
    model, params = small("nemotron_h")
    models.save_pretrained(tmp_path / "base", model, jax.tree.map(lambda leaf: leaf.astype(dtype), params))
    apply, params = models.load_pretrained(tmp_path / "base", dtype=None)
    apart = recast(params, ONE_EXPERT if trained == "one expert" else [], jax.random.key(0))
    mask = freezejax.trainable_mask(apart, [(rule, True), (".*", False)])
    tx = freezejax.freeze(optax.sgd(0.1, momentum=0.9), mask)
    tokens = np.arange(20, dtype=np.int32).reshape(2, 10) % 13
    gradient = jax.jit(freezejax.value_and_grad(lambda params: apply(params, tokens, targets_BxT=tokens).mean(), mask))
    state = tx.init(apart)
    for _ in range(2):
        updates, state = tx.update(gradient(apart)[1], state, apart)
        apart = freezejax.apply_updates(apart, updates)
    models.save_pretrained(tmp_path / "tuned", model, apart, like=tmp_path / "base")
    before, after = (dict(tensors.open_folder(tmp_path / name)) for name in ("base", "tuned"))
    before, after = ({name: np.asarray(tensor) for name, tensor in state.items()} for state in (before, after))
    assert {tensor.dtype for tensor in after.values()} == {jnp.dtype(dtype)}
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if re.fullmatch(changes, name)}
    assert changed
    _, again = models.load_pretrained(tmp_path / "tuned", dtype=None)
    jax.tree.map(np.testing.assert_array_equal, again, jax.tree.map(whole, apart, is_leaf=is_weight))
