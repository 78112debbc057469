"""The ensemble study: what is compared, and that an ensemble's run holds the weights of its members' runs."""

import json

import jax
import numpy as np
import pytest

from experiments.configs.ensemble import get_config
from experiments.engine.matching import has_maps, step_flops, stored_bytes
from experiments.engine.results import packing
from experiments.engine.study import run_study
from experiments.engine.variants import paper_of
from experiments.ensemble import make_study
from freezejax import artifact, models
from freezejax.training.checkpoints import load_params


@pytest.mark.parametrize("scale", ["tiny", "h100"])
def test_controls_have_the_bytes_steps_and_scale_that_they_say(scale):
    config = get_config(scale)
    study, codec = make_study(config, 256), packing(config)["codec"]
    found = {variant.name: variant for variant in study.variants}
    assert len(found) == len(study.variants) == 18
    for contrast in study.contrasts:
        assert {contrast.variant, contrast.reference} <= set(found)
    for variant in study.variants:
        steps = variant.train["steps"]
        if variant.same_bytes_as:
            size, target = (stored_bytes(v.model, codec) for v in (variant, found[variant.same_bytes_as]))
            assert size == pytest.approx(target, rel=0.02)
        if variant.needs:
            assert variant.model["members"] == [found[name].model for name in variant.needs]
            (phase,) = variant.schedule.phases(models.build(**variant.model).abstract_params(), steps)
            assert sum(jax.tree.leaves(phase.mask)) == phase.mask["mix"] == variant.name.endswith("weighted")
            assert has_maps(variant.model) == variant.name.startswith("trained_and")
        else:
            assert steps == config.train.steps * (2 if variant.name.endswith("both_steps") else 1)
    assert found["half"].model == found["half_other"].model == found["half_both_steps"].model
    both = 2 * step_flops(found["half"].model)
    assert step_flops(found["one_at_halves_bytes"].model) == pytest.approx(both, rel=0.25)
    for name in ("two_halves", "trained_and_frozen"):
        paper = paper_of(found[name].papers, "gutenberg")
        assert paper.delta_pct == pytest.approx(-10.8, abs=0.01)
        assert not paper.reference  # the baseline: the single model


def test_an_ensembles_run_holds_the_weights_of_its_members_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("FREEZEJAX_CACHE", str(tmp_path / "cache"))
    config = get_config("tiny")
    config.variants, config.mix.steps, config.data.val_sequences = "two_halves,two_halves_weighted", 3, 4
    config.train.update(steps=2, batch_size=2, seq_len=16, eval_every=0, checkpoint_every=0)
    config.sizes.single.update(num_layers=1, model_dim=32)
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # for optax's Adam, in the threads that compile too
    try:
        run_study(make_study, config, tmp_path / "run")
    finally:
        jax.config.update("jax_numpy_dtype_promotion", before)
    study = {variant.name: variant for variant in make_study(config, 256).variants}

    def params(name):
        shapes = models.build(**study[name].model).abstract_params()
        return load_params(tmp_path / "run" / "runs" / name / "seed_0" / "params", shapes)

    halves = [params(name) for name in ("half", "half_other")]
    first, other = (half["blocks"][0]["mlp"]["up"]["kernel"] for half in halves)
    assert np.abs(first - other).max() > 0.01  # another training seed
    for name, learned in (("two_halves", False), ("two_halves_weighted", True)):
        whole = params(name)
        jax.tree.map(np.testing.assert_array_equal, whole["members"], dict(enumerate(halves)))
        assert bool(np.any(whole["mix"] != 0)) == learned
        folder = tmp_path / "run" / "runs" / name / "seed_0"
        result = json.loads((folder / "result.json").read_text())
        assert (result["trainable_params"], result["model"]["family"]) == (2 * learned, "ensemble")
        _, packed, _ = artifact.load(folder / "model.fjax")
        quantized = [artifact.quantize(half, packing(config)["codec"]) for half in halves]
        jax.tree.map(np.testing.assert_array_equal, packed["members"], dict(enumerate(quantized)))
