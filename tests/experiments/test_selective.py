"""The selective study as data: the paper's rows, and controls that differ in what they say and nothing else."""

import jax
import numpy as np
import pytest

from experiments.configs.selective import get_config
from experiments.engine.matching import abstract_params, step_flops, stored_bytes
from experiments.engine.results import packing
from experiments.engine.variants import paper_corpus, paper_of
from experiments.selective import make_study
from freezejax import models
from freezejax.errors import UserError
from freezejax.paths import leaf_paths, map_with_paths
from freezejax.training.config import TrainConfig
from freezejax.weights import MapWeight, count_seeded, maps_of

SCALES = {"tiny": 256, "cpu": 1024, "h100": 1024}  # and a vocabulary
PAPER = {  # difference to the paper's baseline in percent
    **{"full_freeze_lora": 80.0, "selective_small": -2.1, "selective_small_dropout": 5.8, "selective_medium": -3.4},
    **{"selective_large_dropout": -11.5, "trained_large": -16.1},
}
TWINS = {  # map row -> the control that starts from the same weights and trains them
    **{"selective_small": "baseline_same_maps", "selective_small_dropout": "baseline_dropout_same_maps"},
    **{"selective_medium": "trained_medium_same_maps", "selective_large": "trained_large_same_maps"},
    "selective_large_dropout": "trained_large_dropout_same_maps",
    **{f"frozen_{p}": f"trained_{p}" for p in ("down", "q", "k", "v", "out", "first_half", "second_half")},
}


@pytest.fixture(scope="module")
def studies():
    return {scale: make_study(get_config(scale), vocabulary) for scale, vocabulary in SCALES.items()}


@pytest.fixture(scope="module")
def variants(studies):
    return {variant.name: variant for variant in studies["tiny"].variants}


def seeded_paths(variant):
    return {weight.map.name for weight in maps_of(abstract_params(variant.model))}


@pytest.mark.parametrize("scale", SCALES)
def test_every_variant_can_be_built_at_every_scale(studies, scale):
    study = studies[scale]
    names = [variant.name for variant in study.variants]
    assert len(set(names)) == len(names)
    assert names[0] == "baseline"
    for variant in study.variants:
        (phase,) = variant.schedule.phases(
            abstract_params(variant.model), TrainConfig.from_mapping(variant.train).steps
        )
        trains = map_with_paths(lambda path, mask: mask != path.endswith("/seed"), phase.mask)
        assert all(jax.tree.leaves(trains))  # whatever is stored trains
    pairs = [(contrast.variant, contrast.reference) for contrast in study.contrasts]
    assert len(set(pairs)) == len(pairs)
    assert {name for pair in pairs for name in pair} == set(names)  # every row answers something


def test_the_papers_rows_have_its_figures_and_every_base_seed(studies):
    found = {v.name: paper_of(v.papers, "fineweb").delta_pct for v in studies["cpu"].variants if v.papers}
    assert found == PAPER
    judged = [contrast for contrast in studies["cpu"].contrasts if contrast.papers]
    against = {(c.variant, c.reference): paper_of(c.papers, "fineweb").delta_pct for c in judged}
    assert against.pop(("selective_large_dropout", "trained_large")) == pytest.approx(5.52, abs=0.01)
    assert {reference for _, reference in against} == {"baseline_dropout"}
    assert all(PAPER[name] == delta for (name, _), delta in against.items())
    without_loss = {"full_freeze_lora", "selective_small"}
    for variant in studies["cpu"].variants:
        assert not variant.papers or (variant.papers[0].reference == "") == (variant.name in without_loss)
    main = {v.name for v in studies["cpu"].variants if v.base_seeds}
    assert main == {name for name in PAPER if name != "trained_large"}
    assert all(bool(v.model.get("weights")) >= v.base_seeds for v in studies["cpu"].variants)


def test_maps_are_where_the_names_say(variants):
    def ends(variant):
        return {path.removeprefix("blocks/0/") for path in seeded_paths(variant) if path.startswith("blocks/0/")}

    gate_up = {"mlp/gate/kernel", "mlp/up/kernel"}
    for name, variant in variants.items():
        if name.startswith("selective"):
            assert ends(variant) == gate_up
        elif name.startswith(("baseline", "trained")):
            assert not maps_of(abstract_params(variant.model))
    for place, kernel in {"down": "mlp/down", **{p: f"attn/{p}" for p in ("q", "k", "v", "out")}}.items():
        assert ends(variants[f"frozen_{place}"]) == {f"{kernel}/kernel"}
    lora = abstract_params(variants["full_freeze_lora"].model)
    blocks = [path for path in leaf_paths(lora) if path.startswith("blocks") and "/ln" not in path]
    assert {path.rsplit("/", 1)[1] for path in blocks} == {"seed", "a", "b"}
    first, second = (variants[f"frozen_{half}_half"] for half in ("first", "second"))
    assert seeded_paths(first).isdisjoint(seeded_paths(second))
    every = {
        path for path in leaf_paths(abstract_params(variants["trained_first_half"].model)) if path.endswith("kernel")
    }
    assert seeded_paths(first) | seeded_paths(second) == every


def test_each_distribution_is_one_row_and_all_else_is_alike(variants):
    normal = variants["selective_small"]
    found = {}
    for name, variant in variants.items():
        if name.startswith("selective_small") and "dropout" not in name:
            rule, *more = variant.model["weights"]
            found[rule["distribution"], *(other["kind"] for other in more)] = name
            assert {**variant.model, "weights": normal.model["weights"]} == normal.model
            assert variant.train == normal.train
    assert {distribution for distribution, *_ in found} == {
        "normal",
        "rademacher",
        "uniform",
        "hadamard",
        "normal_f32",
        "orthogonal_qr",
    }
    assert found["normal", "gain"] == "selective_small_gain"
    assert len(found) == 7


def initial(variant, base_seed):
    """Initial weights as plain arrays, maps drawn."""
    params = models.build(**variant.model).init(jax.random.key(7), jax.random.key(base_seed))
    drawn = jax.tree.map(
        lambda leaf: leaf.materialize() if isinstance(leaf, MapWeight) else leaf,
        params,
        is_leaf=lambda leaf: isinstance(leaf, MapWeight),
    )
    return dict(zip(leaf_paths(drawn), map(np.asarray, jax.tree.leaves(drawn)), strict=True))


@pytest.mark.parametrize(("name", "twin"), TWINS.items())
def test_twins_start_from_the_same_bits_and_differ_in_nothing_else(variants, name, twin):
    frozen, trained = variants[name], variants[twin]
    assert {**frozen.model, "weights": None} == {**trained.model, "weights": None}
    (rule,), (other,) = frozen.model["weights"], trained.model["weights"]
    assert {**rule, "trained": True} == other
    assert frozen.train == trained.train
    assert_same_start(initial(frozen, 3), initial(trained, 3))


def assert_same_start(one, other):
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[path], err_msg=path)


def test_counterpart_another_base_seed_is_another_start(variants):
    frozen, trained = (initial(variants[name], seed) for name, seed in (("frozen_q", 3), ("trained_q", 4)))
    with pytest.raises(AssertionError, match="attn/q"):
        assert_same_start(frozen, trained)


@pytest.mark.parametrize(("scale", "vocabulary"), [("cpu", 256), ("cpu", 1024), ("h100", 1024)])
def test_the_same_stored_bytes(scale, vocabulary):
    config = get_config(scale)
    found = {variant.name: variant for variant in make_study(config, vocabulary).variants}
    target = stored_bytes(found["selective_medium"].model, packing(config)["codec"])
    assert found["trained_at_selective_bytes_same_maps"].same_bytes_as == "selective_medium"
    matched = found["trained_at_selective_bytes_same_maps"].model
    assert stored_bytes(matched, packing(config)["codec"]) == pytest.approx(target, rel=0.005)
    assert stored_bytes(found["trained_medium_same_maps"].model, packing(config)["codec"]) > 1.2 * target
    assert matched["num_layers"] == found["selective_medium"].model["num_layers"]


@pytest.mark.parametrize("scale", SCALES)
def test_the_same_flops_per_step(studies, scale):
    found = {variant.name: variant.model for variant in studies[scale].variants}
    target = step_flops(found["selective_medium"])
    matched = found["trained_at_selective_step_same_maps"]
    assert step_flops(matched) == pytest.approx(target, rel=0.01)
    assert matched["model_dim"] == found["selective_medium"]["model_dim"]
    assert step_flops(found["trained_medium_same_maps"]) > 1.05 * target


def test_a_map_saves_the_flops_of_its_own_gradient(variants):
    seeded, trained = (variants[name].model for name in ("selective_medium", "trained_medium_same_maps"))
    assert step_flops(trained) - step_flops(seeded) == 2 * count_seeded(abstract_params(seeded))


def test_what_the_study_refuses(studies):
    with pytest.raises(UserError, match="expected auto, fineweb or none"):
        paper_corpus(studies["tiny"], "gutenberg", "0" * 64)  # the paper did not run it on its books
    for field, value, words in [
        ("model.family", "parameter_golf", "geglu"),
        ("freeze.pattern", "blocks/.*/gat/kernel", "config.freeze.pattern='blocks/.*/gat/kernel': .*matches no kernel"),
    ]:
        config = get_config("tiny")
        config.update_from_flattened_dict({field: value})
        with pytest.raises(UserError, match=words):
            make_study(config, 256)


def test_the_tiny_scale_is_tiny_and_the_others_are_those_of_progressive():
    from experiments.configs import progressive

    tiny = get_config("tiny")
    assert (tiny.seeds, tiny.base_seeds) == (1, 1)
    assert tiny.train.steps * tiny.train.batch_size * tiny.train.seq_len <= 20_000
    cpu, other = get_config("cpu"), progressive.get_config("cpu")
    assert (cpu.seeds, cpu.base_seeds) == (3, 2)
    assert (cpu.train, cpu.sizes, cpu.artifact) == (other.train, other.sizes, other.artifact)
    with pytest.raises(UserError, match="no scale 'smal'"):
        get_config("smal")
