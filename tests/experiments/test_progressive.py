"""The progressive study as data: every control is there, and freezes, matches and restarts what it says."""

import os
import shutil
from pathlib import Path

import jax
import pytest

from experiments.configs.progressive import get_config
from experiments.engine.matching import stored_bytes
from experiments.engine.results import packing, sizes
from experiments.engine.variants import CORPORA, Variant, paper_corpus, paper_of, select
from experiments.progressive import make_study
from freezejax import data, models
from freezejax.errors import UserError
from freezejax.masks import count_parameters
from freezejax.paths import leaf_paths
from freezejax.schedules import FreezeSchedule
from freezejax.training.config import TrainConfig
from freezejax.weights import maps_of

SCALES = {"tiny": 256, "cpu": 1024, "h100": 4096}  # and a vocabulary


@pytest.fixture(scope="module")
def studies():
    return {scale: make_study(get_config(scale), vocabulary) for scale, vocabulary in SCALES.items()}


@pytest.fixture(scope="module")
def variants(studies):
    return {variant.name: variant for variant in studies["tiny"].variants}


def shapes(variant):
    return jax.eval_shape(models.build(**variant.model).init, jax.random.key(0))


def stored(variant, config):
    return stored_bytes(variant.model, packing(config)["codec"])


def differences(one, other):
    """Fields of model and training in which two variants differ."""
    both = [{**dict(v.model), **{f"train.{k}": x for k, x in v.train.items()}} for v in (one, other)]
    return {key for key in both[0].keys() | both[1].keys() if both[0].get(key) != both[1].get(key)}


def frozen_at(variant, step):
    """Weights that do not train at a step; a random map goes by the path of its kernel."""
    params = shapes(variant)
    phases = variant.schedule.phases(params, variant.train["steps"])
    (mask,) = (phase.mask for phase in phases if phase.start <= step < phase.stop)
    masked = zip(leaf_paths(params), jax.tree.leaves(mask), strict=True)
    return {path.removesuffix("/seed") for path, trains in masked if not trains}


def gate_and_up(variant):
    paths = {path.removesuffix("/seed") for path in leaf_paths(shapes(variant))}
    return {path for path in paths if path.endswith(("mlp/gate/kernel", "mlp/up/kernel"))}


@pytest.mark.parametrize("scale", SCALES)
def test_every_variant_can_be_built_at_every_scale(studies, scale):
    study = studies[scale]
    names = [variant.name for variant in study.variants]
    assert len(set(names)) == len(names)
    assert names[0] == "baseline"
    for variant in study.variants:
        variant.schedule.phases(shapes(variant), TrainConfig.from_mapping(variant.train).steps)
    for contrast in study.contrasts:
        assert {contrast.variant, contrast.reference} <= set(names)


def test_every_variant_that_was_asked_for_is_there(variants):
    size = {name: (v.model["num_layers"], v.model["model_dim"]) for name, v in variants.items()}
    assert size["selective_small"] == size["progressive_small"] == size["baseline"]
    for larger in ("medium", "large"):
        assert size[f"selective_{larger}"] == size[f"progressive_{larger}"] == size[f"trained_{larger}"]
        assert size[f"trained_{larger}"] > size["baseline"]
    never = [name for name, v in variants.items() if not frozen_at(v, v.train["steps"] - 1)]
    assert all(name.startswith(("baseline", "trained")) for name in never)
    assert len(never) == sum(name.startswith(("baseline", "trained")) for name in variants)


def test_masks_at_the_first_and_the_last_step(variants):
    for name, variant in variants.items():
        kind = name.split("_")[0]
        steps = variant.train["steps"]
        at_first, at_last = frozen_at(variant, 0), frozen_at(variant, steps - 1)
        assert at_first == (gate_and_up(variant) if kind == "selective" else set())
        assert at_last == (set() if kind in ("baseline", "trained") else gate_and_up(variant))
        assert bool(maps_of(shapes(variant))) == (kind == "selective")
        if kind == "progressive":
            assert not frozen_at(variant, round(steps / 3) - 1)
            assert frozen_at(variant, round(steps / 3)) == gate_and_up(variant)


def test_controls_differ_from_their_partner_in_what_their_name_says_and_nothing_else(variants):
    expected = {
        ("progressive_medium_rate_restart", "progressive_medium"): {"train.restart_schedule"},
        ("progressive_medium_full_restart", "progressive_medium"): {
            "train.restart_schedule",
            "train.restart_optimizer",
        },
        ("progressive_medium_full_restart", "progressive_medium_rate_restart"): {"train.restart_optimizer"},
        ("progressive_medium", "trained_medium"): set(),
        ("progressive_small", "baseline"): set(),
        ("progressive_large", "trained_large"): set(),
        ("selective_medium", "trained_medium_same_scale"): {"weights"},
        ("selective_medium", "trained_medium"): {"mlp_in_init", "weights"},
        ("selective_small", "baseline_same_scale"): {"weights"},
        ("selective_large", "trained_large_same_scale"): {"weights"},
        ("progressive_medium_same_scale", "trained_medium_same_scale"): set(),
        ("progressive_medium_same_scale", "selective_medium"): {"weights"},
        ("progressive_medium_dropout", "trained_medium_dropout"): set(),
        ("selective_medium_dropout", "trained_medium_dropout_same_scale"): {"weights"},
        ("selective_medium_dropout", "selective_medium"): {"dropout"},
        ("trained_medium_dropout_same_scale", "trained_medium_dropout"): {"mlp_in_init"},
        ("progressive_medium_dropout", "progressive_medium"): {"dropout"},
        ("baseline_dropout", "baseline"): {"dropout"},
        ("trained_at_selective_bytes", "trained_medium"): {"model_dim", "mlp_mult"},
        ("trained_at_selective_bytes_same_scale", "trained_medium_same_scale"): {"model_dim", "mlp_mult"},
    }
    for (name, partner), fields in expected.items():
        assert differences(variants[name], variants[partner]) == fields, (name, partner)
    restarts = {
        name: {field for field in ("restart_schedule", "restart_optimizer") if variant.train[field]}
        for name, variant in variants.items()
    }
    assert {name: fields for name, fields in restarts.items() if fields} == {
        "progressive_medium_rate_restart": {"restart_schedule"},
        "progressive_medium_full_restart": {"restart_schedule", "restart_optimizer"},
    }


@pytest.mark.parametrize(("scale", "vocabulary"), [("tiny", 256), ("cpu", 256), ("cpu", 1024), ("h100", 1024)])
@pytest.mark.parametrize("codec", ["int6", "int8"])
def test_matched_bytes_lie_within_one_percent_of_what_is_packed(scale, vocabulary, codec):
    config = get_config(scale)
    config.artifact.codec = codec
    found = {variant.name: variant for variant in make_study(config, vocabulary).variants}
    target = stored(found["selective_medium"], config)
    for name in ("trained_at_selective_bytes", "trained_at_selective_bytes_same_scale"):
        assert found[name].same_bytes_as == "selective_medium"
        assert stored(found[name], config) == pytest.approx(target, rel=0.01)
        for size in ("num_heads", "num_layers"):
            assert found[name].model[size] == found["trained_medium"].model[size]
    assert stored(found["trained_medium"], config) > 1.2 * target
    # A leaf that was trained and then frozen is billed: freezing later stores what training stores.
    for size in ("medium", "large"):
        assert found[f"trained_{size}"].same_bytes_as == f"progressive_{size}"
        assert stored(found[f"progressive_{size}"], config) == stored(found[f"trained_{size}"], config)


def test_the_same_initial_scale_is_that_of_the_maps(variants):
    def gate(name):
        kernel = models.build(**variants[name].model).init(jax.random.key(0))["blocks"][0]["mlp"]["gate"]["kernel"]
        return kernel.materialize() if hasattr(kernel, "materialize") else kernel

    width = variants["selective_medium"].model["model_dim"]
    for name in ("selective_medium", "trained_medium_same_scale"):
        assert float(gate(name).std()) == pytest.approx(width**-0.5, rel=0.05)
    assert float(gate("trained_medium").std()) == pytest.approx(0.02, rel=0.05)


MODEL = {"family": "geglu", "vocab_size": 16, "num_layers": 1, "model_dim": 16, "num_heads": 1}


def sizes_of(schedule, steps=60, **model):
    model = {**MODEL, **model}
    params = models.build(**model).init(jax.random.key(0))
    return sizes(Variant("v", model, {"steps": steps}, schedule), params)


def test_parameters_add_up_and_only_maps_are_free(variants):
    weights = variants["selective_medium"].model["weights"]
    trained, selective, progressive = (
        sizes_of(variants[name].schedule, **more)
        for name, more in (
            ("trained_medium", {}),
            ("selective_medium", {"weights": weights}),
            ("progressive_medium", {}),
        )
    )
    whole = count_parameters(models.build(**MODEL).init(jax.random.key(0)))
    mlp_in = 2 * 16 * 32
    assert trained == {"trainable_params": whole, "frozen_params": 0, "seeded_params": 0}
    assert selective == {"trainable_params": whole - mlp_in, "frozen_params": 0, "seeded_params": mlp_in}
    assert progressive == {"trainable_params": whole - mlp_in, "frozen_params": mlp_in, "seeded_params": 0}
    saved = stored_bytes(MODEL, "int8") - stored_bytes({**MODEL, "weights": weights}, "int8")
    assert saved == 2 * mlp_in - 8  # tensors this small are float16; the base seed takes 8 bytes


def test_a_leaf_that_was_frozen_and_thawed_is_stored_beside_a_map():
    up, rest = (".*/up/kernel", False), (".*", True)
    schedule = FreezeSchedule([(0, [up, rest]), (8, [(".*", False)])])
    found = sizes_of(schedule, 10, weights=[{"pattern": ".*/gate/kernel", "kind": "map"}])
    assert found["seeded_params"] == 16 * 32
    assert found["trainable_params"] == 0
    assert found["frozen_params"] == count_parameters(models.build(**MODEL).init(jax.random.key(0))) - 16 * 32


def test_the_papers_figures_stand_beside_the_rows_they_are_of(studies):
    expected = {"fineweb": {"selective_medium", "progressive_medium", "progressive_large"}}
    expected["gutenberg"] = expected["fineweb"] - {"progressive_large"}
    for study in studies.values():
        for corpus, names in expected.items():
            found = {v.name: paper_of(v.papers, corpus) for v in study.variants}
            assert {name for name, paper in found.items() if paper} == names
            for paper in filter(None, found.values()):
                assert f"{paper.delta_pct:+.1f}%" in paper.claim
                assert corpus in paper.claim
        assert [[paper.corpus for paper in c.papers] for c in study.contrasts if c.papers] == [["fineweb", "gutenberg"]]


def test_only_a_text_of_the_papers_or_the_users_word_makes_its_figures_ours(studies):
    for fingerprint, corpus in CORPORA.items():
        for study in studies.values():  # of whatever vocabulary
            assert paper_corpus(study, "auto", fingerprint) == corpus
            assert paper_corpus(study, "none", fingerprint) == ""
            assert paper_corpus(study, "auto", "0" * 64) == ""
            assert paper_corpus(study, "gutenberg", "0" * 64) == "gutenberg"
    with pytest.raises(UserError, match=r"config\.paper='blog': expected auto, fineweb, gutenberg or none"):
        paper_corpus(studies["tiny"], "blog", "0" * 64)


SHARED = Path(os.environ.get("FREEZEJAX_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared folder with the paper's texts is missing")
def test_the_known_fingerprints_are_those_of_the_texts(tmp_path):
    for number in (11, 84, 1342, 1661):
        (tmp_path / "books").mkdir(exist_ok=True)
        shutil.copyfile(SHARED / "gutenberg" / f"pg{number}.txt", tmp_path / "books" / f"pg{number}.txt")
    samples = [SHARED / "fineweb_sample" / name for name in ("sp1024", "sp4096")]
    found = [data.load(str(path), cache_dir=str(tmp_path / "cache")) for path in (tmp_path / "books", *samples)]
    assert [CORPORA[corpus.fingerprint] for corpus in found] == ["gutenberg", "fineweb", "fineweb"]
    other = data.load(str(tmp_path / "books"), val_fraction=0.2, cache_dir=str(tmp_path / "cache"))
    assert other.fingerprint not in CORPORA


def test_a_pattern_that_matches_nothing_is_told_with_its_flag():
    config = get_config("tiny")
    config.freeze.pattern = "nothing"
    with pytest.raises(UserError, match=r"config\.freeze\.pattern='nothing': .*matches no kernel"):
        make_study(config, 256)
    config.freeze.pattern, config.sizes.small.num_heads = r"blocks/\d+/mlp/up/kernel", 5
    with pytest.raises(UserError, match=r"^(?!config\.freeze).*num_heads=5"):  # not the pattern's fault
        make_study(config, 256)


def test_selecting_keeps_the_baseline_first_and_the_contrasts_that_have_both_sides(studies):
    found = select(studies["tiny"], " progressive_medium, trained_medium")
    assert [v.name for v in found.variants] == ["baseline", "trained_medium", "progressive_medium"]
    assert [(c.variant, c.reference) for c in found.contrasts] == [("progressive_medium", "trained_medium")]
    with pytest.raises(UserError, match="nearest: progressive_medium"):
        select(studies["tiny"], "progresive_medium")


@pytest.mark.parametrize(("at", "step"), [(20.0, 20), (0.25, 20), (1 / 3, 27)])
def test_the_freeze_point_is_a_step_or_a_fraction(at, step):
    config = get_config("tiny")
    config.freeze.at = at
    variant = next(v for v in make_study(config, 256).variants if v.name == "progressive_small")
    assert variant.schedule.resolve(config.train.steps).entries[1][0] == step


def test_the_other_model_family_runs_through_the_same_study():
    config = get_config("tiny")
    config.model.family = "parameter_golf"
    for variant in make_study(config, 256).variants:
        frozen = frozen_at(variant, variant.train["steps"] - 1)
        assert bool(frozen) == variant.name.startswith(("selective", "progressive"))
        assert all(path.endswith("mlp/fc/kernel") for path in frozen)
