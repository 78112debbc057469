"""The scales for accelerators: the paper's sizes on every machine, and the budget of Parameter Golf by prediction."""

import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import pytest

from experiments import golf as golf_study
from experiments import preflight
from experiments.configs import (
    amplitude,
    crystallization,
    distillation,
    domains,
    freeze_except,
    parameter_golf,
    progressive,
    redundancy,
    selective,
)
from experiments.engine.matching import abstract_params
from experiments.engine.results import packing
from freezejax import artifact, cost, models, roles
from freezejax.errors import UserError
from freezejax.training.config import TrainConfig

STUDIES = {"progressive": progressive, "selective": selective, "distillation": distillation}
MACHINES = {"h100": 1, "h100x8": 8, "v5e": 8}
CONTROL = "trained_medium_same_maps"  # of the same size as what fits, and trained: over the budget of bytes


@pytest.mark.parametrize("scale", MACHINES)
@pytest.mark.parametrize("study", STUDIES)
def test_every_machine_trains_the_papers_sizes_on_the_same_batch(study, scale):
    config, paper = STUDIES[study].get_config(scale), STUDIES[study].get_config("h100")
    assert config.scale == scale
    config.scale = "h100"
    assert config.to_json() == paper.to_json()
    sizes = [(size.num_layers, size.model_dim, size.num_heads) for size in config.sizes.values()]
    assert sorted(sizes) == [(6, 192, 6), (8, 256, 4), (12, 384, 6)]
    assert (config.train.steps, config.train.batch_size, config.train.seq_len) == (3000, 64, 512)
    assert config.train.batch_size % MACHINES[scale] == config.data.eval_batch_size % MACHINES[scale] == 0


@pytest.fixture(scope="module")
def golf():
    """Config and the variants it runs, by name."""
    config = parameter_golf.get_config()
    variants = preflight.chosen(preflight.make_study(config), config.variants)
    return config, {variant.name: variant for variant in variants}


def stored(config, variant):
    """Bytes where the compressor gains nothing."""
    return artifact.predict_size(abstract_params(variant.model), model=variant.model, **packing(config)).high


def seconds(variant):
    run = TrainConfig.from_mapping(variant.train)
    found = cost.predict(models.build(**variant.model), run, variant.schedule, mesh={"data": 8})
    return sum(phase.steps * cost.estimate_seconds(phase, cost.hardware_named("h100"), 0.2) for phase in found.phases)


def test_parameter_golf_fits_its_bytes(golf):
    config, variants = golf
    limit = parameter_golf.BUDGET - parameter_golf.CODE
    sizes = {name: stored(config, variant) for name, variant in variants.items()}
    assert len(sizes) == 5
    assert sizes.pop(CONTROL) > parameter_golf.BUDGET
    assert max(sizes.values()) <= limit
    assert min(sizes.values()) > 0.85 * limit  # and uses them


def test_parameter_golf_fits_its_minutes_at_a_fifth_of_the_peak(golf):
    _, variants = golf
    taken = {name: seconds(variant) for name, variant in variants.items()}
    assert max(taken.values()) <= parameter_golf.SECONDS
    assert max(taken.values()) > 0.85 * parameter_golf.SECONDS


@pytest.fixture(scope="module")
def best():
    """The entries of `parameter_golf.py:best`, by name."""
    config = parameter_golf.get_config("best")
    return config, {variant.name: variant for variant in golf_study.make_study(config, 1_024).variants}


_PRINT_MODULES = """
import sys, experiments.golf
ours = (m.__file__ for name, m in sys.modules.items() if name.split(".")[0] in ("freezejax", "experiments"))
print(*filter(None, ours), sep="\\n")
"""


def test_the_code_that_an_entry_imports_fits_what_is_left_for_it():
    root, archive = Path(parameter_golf.__file__).parents[2], io.BytesIO()
    said = subprocess.run([sys.executable, "-c", _PRINT_MODULES], cwd=root, capture_output=True, text=True, check=True)
    with tarfile.open(fileobj=archive, mode="w:xz", preset=9) as file:
        for path in map(Path, sorted(said.stdout.splitlines())):
            file.add(path, path.relative_to(root))
    assert 0.6 * parameter_golf.CODE < len(archive.getvalue()) <= parameter_golf.CODE


def test_the_recommended_entry_fits_its_bytes_and_minutes(best):
    config, entries = best
    assert list(entries) == ["best", "narrow", "trained"]
    for entry in entries.values():
        shapes = abstract_params(entry.model)
        size = artifact.predict_size(shapes, model=entry.model, **packing(config)).gaussian
        assert size == pytest.approx(config.budget, rel=1e-3)
        assert size <= parameter_golf.BUDGET - parameter_golf.CODE
        assert 0.95 * parameter_golf.SECONDS < seconds(entry) <= parameter_golf.SECONDS


def test_the_page_has_what_preflight_found(best):
    _, entries = best
    root = Path(parameter_golf.__file__).parents[2]
    page = (root / "docs" / "preflight.md").read_text(encoding="utf-8")
    found = json.loads((root / "results" / "parameter_golf" / "preflight.json").read_text(encoding="utf-8"))
    taken = {variant["variant"]: variant["seconds"] for variant in found["variants"]}
    assert taken.keys() == entries.keys()
    for program in found["programs"]:
        (phase,) = program["phases"]
        name, model = phase["variant"], entries[phase["variant"]].model
        size = artifact.predict_size(abstract_params(model), model=model, **packing(best[0])).gaussian
        sizes = f"{model['num_layers']}, {model['model_dim']} | {size:,} | {program['peak_bytes'] / 2**30:.2f}"
        assert f"| `{name}` | {sizes} | {phase['stop']:,} | {taken[name] / 60:.1f} |" in page


def test_the_recommended_entry_draws_queries_and_keys_and_trains_the_rest_in_four_bits(best):
    kinds = {leaf.path: leaf.role for leaf in roles.leaves(abstract_params(best[1]["best"].model))}
    seeds = {re.search(r"attn/[^/]+", path)[0] for path, role in kinds.items() if role is roles.Role.SEED}
    assert seeds == {"attn/c_q", "attn/c_k"}
    assert sum(role is roles.Role.SEED for role in kinds.values()) == 2 * 12


def test_an_entry_of_an_unknown_way_is_told():
    config = parameter_golf.get_config("best_tiny")
    config.entries.narrow.way = "narow"
    with pytest.raises(UserError, match=r"config.entries.narrow.way='narow': no such way; nearest: narrow"):
        golf_study.make_study(config, 256)


def test_parameter_golf_has_two_scales_of_the_selective_study():
    assert preflight.make_study(_with_bytes(parameter_golf.get_config("tiny"))).name == "selective"
    with pytest.raises(UserError, match="no scale 'h100'; nearest: h100x8"):
        parameter_golf.get_config("h100")


def _with_bytes(config):
    config.model.vocab_size = 256
    return config


PRETRAINED = {"redundancy": redundancy, "crystallization": crystallization, "amplitude": amplitude, "domains": domains}


@pytest.mark.parametrize("study", PRETRAINED)
def test_a_study_of_a_pretrained_model_needs_no_model_to_be_compiled(study):
    config = PRETRAINED[study].get_config("tiny")
    found = preflight.make_study(config)
    assert found.name == study
    assert found.variants[0].model["family"] == config.base.model.family


@pytest.mark.parametrize(("study", "vocab_size", "billions"), [(domains, 32_000, 6.7), (freeze_except, 131_072, 31.6)])
def test_a_pod_has_models_of_the_size_that_is_said(study, vocab_size, billions):
    config = study.get_config("pod")
    (config.base.model if study is domains else config.model).vocab_size = vocab_size
    config.update({"others": "prose="} if study is domains else {})
    found = preflight.make_study(config)
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract_params(found.variants[0].model))) / 1e9 == pytest.approx(
        billions, rel=0.01
    )
    assert found.variants[0].train["batch_size"] % 256 == 0
