"""Rows of the studies of a pretrained model: what each freezes, and which figures of the papers stand at it."""

import jax
import pytest

from experiments import bases, crystallization, diagnostics, redundancy
from experiments.bases import Base
from experiments.configs import crystallization as crystals_config
from experiments.configs import redundancy as redundancy_config
from experiments.engine.variants import paper_of
from freezejax import models
from freezejax.paths import by_path
from tests.experiments.test_cli import check_one_line

C_PROJ = "blocks/0/attn/c_proj/kernel"


def test_every_variant_freezes_what_its_name_says_and_nothing_else():
    config = redundancy_config.get_config("tiny")
    config.base.model.num_layers = 3
    study = redundancy.make_study(config, 256, Base(None, ""), {})
    shapes = models.build(**study.variants[0].model).abstract_params()
    frozen = {}
    for variant in study.variants:
        mask = by_path(variant.schedule.phases(shapes, variant.train["steps"])[0].mask)
        frozen[variant.name] = {path for path, trains in mask.items() if not trains}
    kernels = set(bases.kernels(shapes))
    assert len(kernels) == 12
    assert frozen["full"] == set()
    assert frozen["L0_attn_c_proj"] == {C_PROJ}
    assert frozen["all_attn_c_proj"] == {C_PROJ.replace("/0/", f"/{i}/") for i in range(3)}
    assert frozen["attention_matrices"] == {kernel for kernel in kernels if "/attn/" in kernel}
    assert frozen["attention"] == {path for path in by_path(shapes) if "/attn/" in path or "/ln1/" in path}
    assert frozen["matrices"] == kernels
    assert frozen["blocks"] == {path for path in by_path(shapes) if path.startswith(("blocks/", "ln_f/"))}
    assert frozen["everything"] == set(by_path(shapes))
    assert frozen["bottom_1"] == frozen["layer_0"] == {path for path in by_path(shapes) if path.startswith("blocks/0/")}
    assert frozen["top_2"] == frozen["layer_1"] | frozen["layer_2"]
    assert frozen["bottom_2"] == frozen["layer_0"] | frozen["layer_1"]
    assert set(by_path(shapes)) - frozen["only_mlp_c_fc"] == {kernel for kernel in kernels if "c_fc" in kernel}
    longer = {variant.name: variant.train["steps"] for variant in study.variants}
    assert longer["attention_long"] == longer["full_long"] == config.longer * longer["full"]
    less = {contrast.variant: set(contrast.less) for contrast in study.contrasts}
    assert less["all_attn_c_proj"] == {f"L{i}_attn_c_proj" for i in range(3)}
    assert less["matrices"] == {diagnostics.name_of(kernel) for kernel in kernels}
    assert less["bottom_2"] == {"layer_0", "layer_1"}


def test_the_papers_figures_stand_at_the_rows_they_are_of():
    config = redundancy_config.get_config("cpu")
    found = {v.name: v for v in redundancy.make_study(config, 14592, Base(None, ""), {}).variants}
    pct = {name: paper_of(v.papers, "any").delta_pct for name, v in found.items() if v.papers}
    assert pct["all_attn_c_proj"] == 5.3
    assert pct["L4_attn_c_proj"] == 0.0  # "next to nothing"
    assert pct["bottom_8"] == 79.9
    assert pct.keys() == redundancy._CLAIMS.keys()
    config = crystals_config.get_config("cpu")
    found = {v.name: v for v in crystallization.make_study(config, 14592, Base(None, "")).variants}
    pct = {name: paper_of(v.papers, "any").delta_pct for name, v in found.items() if v.papers}
    assert pct == {"kept_L4_attn_c_proj": 0.0, "rank_1_L4_attn_c_proj": 0.0, "random_L4_attn_c_proj": -1.6}
    sizes = models.build(**found["full"].model).abstract_params()
    assert 10.1e6 < sum(leaf.size for leaf in jax.tree.leaves(sizes)) < 10.4e6  # the papers' model
    of_tiny = redundancy.make_study(redundancy_config.get_config("tiny"), 512, Base(None, ""), {})
    assert not any(variant.papers for variant in of_tiny.variants)  # of a model of another size


@pytest.mark.parametrize(
    ("study", "field", "told"),
    [
        ("redundancy", "parts=matrixes", "nearest: matrices"),
        ("redundancy", "diagnostics.batches=0", "expected 1 or more"),
        ("redundancy", "dropout=1", "dropout=1.0 must be a number in [0, 1)"),
        ("crystallization", "crystals.forms=rank1", "no form 'rank1'"),
        ("amplitude", "amplitudes.widths=(1.0,)", "expected 2 or more numbers"),
        ("amplitude", "variants=nothin", "nearest: nothing"),
        ("adaptive", "ways=tune", "nearest: tuning"),
        ("adaptive", "train.batch_size=1", "plasticity compares 2 or more examples"),
        ("domains", "types=q_prj", "q_prj"),
        ("domains", "tune.steps=0", "config.tune.steps=0"),
    ],
)
def test_what_cannot_run_is_told_before_the_base_is_trained(study, field, told, command, tmp_path):
    arguments = [f"--config=experiments/configs/{study}.py:tiny", f"--workdir={tmp_path / 'run'}", f"--config.{field}"]
    assert told in check_one_line(command(f"experiments.{study}", *arguments))
    assert not (tmp_path / "run").exists()
