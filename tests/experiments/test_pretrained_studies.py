"""The studies of a pretrained model: what each freezes and replaces, on a base of two tiny blocks made on the spot."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import amplitude, bases, crystallization, diagnostics, pretrain, redundancy
from experiments.bases import Base
from experiments.configs import amplitude as amplitude_config
from experiments.configs import crystallization as crystals_config
from experiments.configs import pretrain as pretrain_config
from experiments.configs import redundancy as redundancy_config
from experiments.engine import lock
from experiments.engine.study import run_study
from experiments.engine.variants import paper_of
from experiments.report import heatmap
from freezejax import UserError, models, module_types, trainable_mask
from freezejax.analysis import participation_ratio
from freezejax.paths import by_path
from freezejax.weights import matrix
from tests.models.conftest import SMALL

C_PROJ = "blocks/0/attn/c_proj/kernel"


def shortened(config):
    config.train.steps, config.train.batch_size, config.train.seq_len = 3, 2, 16
    config.data.val_sequences, config.data.eval_batch_size, config.seeds = 8, 8, 2
    config.diagnostics.batches = 1
    return config


@pytest.fixture(scope="module")
def standard():
    """For optax's Adam, in the threads that compile, too."""
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", before)


@pytest.fixture(scope="module")
def base(tmp_path_factory, standard):
    """A base of four steps, as `experiments.pretrain` leaves it."""
    config = bases.get_config("tiny")
    config.train.steps, config.train.batch_size, config.train.seq_len = 4, 2, 16
    config.model.model_dim, config.data.val_sequences = 32, 8
    folder = tmp_path_factory.mktemp("base")
    with lock.held, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FREEZEJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        run_study(pretrain.make_study, config, folder)
        path = pretrain.save(config, folder)
        assert pretrain.save(config, folder) == path
    return Base(path, "")


def test_a_model_is_fine_tuned_one_type_of_module_alone(base, tmp_path, monkeypatch):
    monkeypatch.setenv("FREEZEJAX_CACHE", str(tmp_path / "cache"))
    config = pretrain_config.get_config("tiny")
    config.train.steps, config.train.batch_size, config.train.seq_len, config.data.val_sequences = 2, 2, 16, 8
    config.start, config.trainable = str(base.path), "c_proj"
    with lock.held:
        run_study(pretrain.make_study, config, tmp_path)
    before, after = (by_path(models.load_pretrained(path)[1]) for path in (base.path, pretrain.save(config, tmp_path)))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if "/c_proj/" in path}
    log = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert "attn/c_proj, " in json.loads(log[0])["rules"][0]


def test_a_tokenizer_that_is_learned_from_the_text_is_none_of_a_model_that_has_its_own(base, tmp_path):
    config = pretrain_config.get_config("cpu")
    config.start = str(tmp_path / "model")
    shutil.copytree(base.path, config.start)
    pretrain.make_study(config, 256)  # of bytes
    (tmp_path / "model" / "spiece.model").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"config\.data\.tokenizer=bpe:14592: the model was trained with .*spiece\.model"
    ):
        pretrain.make_study(config, 256)


@pytest.mark.parametrize("family", sorted(SMALL))
def test_every_type_of_every_family_can_be_what_trains(family):
    config = pretrain_config.get_config("tiny")
    config.model = {"family": family, **SMALL[family]}
    shapes = models.build(**config.model.to_dict()).abstract_params()
    learns = [path for path, trains in by_path(trainable_mask(shapes, [(".*", True)])).items() if trains]  # no counter
    for name in module_types(shapes):
        config.trainable = name
        (variant,) = pretrain.make_study(config, 13).variants
        mask = by_path(variant.schedule.phases(shapes, 9)[0].mask)
        assert {path for path, trains in mask.items() if trains} == {path for path in learns if name in path.split("/")}
    config.trainable = "none_such"
    types = ", ".join(module_types(shapes))
    with pytest.raises(
        UserError, match=f"config.trainable: there is no module type 'none_such'; this model has {types}"
    ):
        pretrain.make_study(config, 13)


@pytest.fixture(scope="module")
def ran(base, tmp_path_factory):
    """Every study on it: folder by name."""
    made = {
        "redundancy": (redundancy_config, functools.partial(redundancy.make_study, base=base)),
        "crystallization": (crystals_config, functools.partial(crystallization.make_study, base=base)),
        "amplitude": (amplitude_config, functools.partial(amplitude.make_study, base=base)),
    }
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FREEZEJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name, (module, make) in made.items():
            config, folder = shortened(module.get_config("tiny")), tmp_path_factory.mktemp(name)
            if name == "redundancy":
                config.parts = "matrices,types,cumulative,long"
                make = functools.partial(make, measured=diagnostics.of_base(base, config, folder))
            if name == "crystallization":
                config.crystals.pattern, config.crystals.forms = C_PROJ, "kept,rank_1,random,mean"
            with lock.held:
                run_study(make, config, folder)
            found[name] = folder, config
    return found


def summary(ran, name):
    return json.loads((ran[name][0] / "summary.json").read_text())


def losses(ran, name):
    """(variant, seed) -> loss."""
    results = [json.loads(path.read_text()) for path in ran[name][0].glob("runs/*/*/result.json")]
    return {(result["variant"], result["seed"]): result["val_ce"] for result in results}


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


def test_costs_interactions_and_the_map_of_matrices(ran):
    found, ce = summary(ran, "redundancy"), losses(ran, "redundancy")
    rows = {row["name"]: row for row in found["rows"]}
    start = {ce["everything", seed] for seed in (0, 1)} | {ce["everything_long", seed] for seed in (0, 1)}
    assert len(start) == 1  # nothing trained: whatever the seed and the steps, the base
    assert start.pop() > max(ce["full", 0], ce["full", 1])
    (contrast,) = (item for item in found["contrasts"] if item["variant"] == "all_attn_c_proj")
    each = []
    for seed in (0, 1):
        cost = {name: 100 * (ce[name, seed] / ce["full", seed] - 1) for name in ["all_attn_c_proj", *contrast["less"]]}
        each.append(2 * cost["all_attn_c_proj"] - sum(cost.values()))
    assert contrast["effect_pct"] == pytest.approx(np.mean(each))
    told = [text for text in found["findings"] if text.startswith("all_attn_c_proj: frozen together")]
    assert len(told) == 1
    assert f"{rows['all_attn_c_proj']['delta_pct']:+.2f} %" in told[0]
    assert "rank correlation" in found["findings"][-1]
    drawn = heatmap.picture(found["rows"])
    assert f"block 0 attn_c_proj {rows['L0_attn_c_proj']['delta_pct']:+.2f} %" in drawn
    assert heatmap.picture([row for row in found["rows"] if row["name"] == "full"]) == ""


def test_the_measures_of_the_base_are_of_its_matrices_and_are_kept(ran, base):
    folder, config = ran["redundancy"]
    file = json.loads((folder / diagnostics.FILE).read_text())
    kept = file["matrices"]
    kernel = base.params()["blocks"][0]["attn"]["c_proj"]["kernel"]
    assert kept["L0_attn_c_proj"]["participation ratio"] == pytest.approx(
        float(participation_ratio(kernel.T)), rel=1e-4
    )
    assert kept["L0_attn_c_proj"]["norm"] == pytest.approx(float(jnp.linalg.norm(kernel)), rel=1e-4)
    assert all(value > 0 for values in kept.values() for value in values.values())
    (folder / diagnostics.FILE).write_text(json.dumps({**file, "matrices": {"read": {}}}))
    assert diagnostics.of_base(base, config, folder) == {"read": {}}
    other = {**file["of"], "batches": [16, 2, 5]}
    (folder / diagnostics.FILE).write_text(json.dumps({"of": other, "matrices": {"read": {}}}))
    assert diagnostics.of_base(base, config, folder).keys() == kept.keys()  # of something else: measured again
    assert json.loads((folder / diagnostics.FILE).read_text())["of"] == file["of"]


def test_a_measure_that_orders_the_costs_is_said_to_predict_and_noise_is_not():
    rng = np.random.default_rng(0)
    cost = {f"L{i}_x": float(value) for i, value in enumerate(rng.normal(size=40))}
    rows = [{"name": name, "delta_pct": value} for name, value in cost.items()]
    measured = {name: {"truth": value**3, "noise": float(rng.normal())} for name, value in cost.items()}
    (told,) = diagnostics.predictions({"rows": rows}, measured)
    assert told.endswith("truth predicts it.")
    turned = {name: {"noise": values["noise"]} for name, values in measured.items()}
    assert diagnostics.predictions({"rows": rows}, turned)[0].endswith("none predicts it.")
    assert diagnostics.predictions({"rows": rows[:4]}, measured) == []


def test_each_form_replaces_the_one_matrix_and_it_stays_as_it_was_put(base, ran):
    _, config = ran["crystallization"]
    study = crystallization.make_study(config, 256, base)
    assert [v.name.removesuffix("_L0_attn_c_proj") for v in study.variants] == [
        "full",
        "kept",
        "rank_1",
        "random",
        "mean",
    ]
    whole, task = base.params(), type("Task", (), {"config": type("Config", (), {"seed": 3})})
    kernel = whole["blocks"][0]["attn"]["c_proj"]["kernel"]
    for variant in study.variants[2:]:
        start, model = variant.start(task), models.build(**variant.model)
        model.check(start)
        put = matrix(start["blocks"][0]["attn"]["c_proj"]["kernel"])
        singular = np.linalg.svd(put, compute_uv=False)
        if variant.name.startswith("random"):
            assert singular[8] > 0.1 * singular[0]
            assert np.linalg.norm(put) == pytest.approx(float(jnp.linalg.norm(kernel)), rel=1e-4)
        else:
            assert singular[1] < 1e-4 * singular[0]
        mask = by_path(variant.schedule.phases(start, 3)[0].mask)
        assert {path for path, trains in mask.items() if not trains} == {p for p in mask if p.startswith(C_PROJ)}


def test_what_a_replacement_costs_before_and_after_stands_in_one_table(ran, base):
    folder, config = ran["crystallization"]
    found = summary(ran, "crystallization")
    earlier = crystallization.before(base, config)
    assert earlier.keys() == {"L0_attn_c_proj"}
    assert earlier["L0_attn_c_proj"].keys() == {"rank_1", "random", "mean"}
    text = crystallization.scan(found, diagnostics.of_base(base, config, folder), earlier)
    after = {row["name"]: row["delta_pct"] for row in found["rows"]}
    assert f"{earlier['L0_attn_c_proj']['random']:+.2f} %" in text
    assert f"{after['rank_1_L0_attn_c_proj']:+.2f} %" in text
    assert any(told.startswith("random: of 1 matrices") for told in found["findings"])
    some = {**found, "rows": [row for row in found["rows"] if row["name"] != "random_L0_attn_c_proj"]}
    part = crystallization.scan(some, diagnostics.of_base(base, config, folder), earlier)  # config.variants named some
    assert f"{after['rank_1_L0_attn_c_proj']:+.2f} %" in part


def test_efficiency_is_the_share_of_what_everything_gains(ran, base):
    found, ce = summary(ran, "amplitude"), losses(ran, "amplitude")
    mean = {name: np.mean([ce[name, seed] for seed in (0, 1)]) for name in ("full", "nothing", "only_mlp_c_fc")}
    share = 100 * (mean["nothing"] - mean["only_mlp_c_fc"]) / (mean["nothing"] - mean["full"])
    assert f"mlp_c_fc {share:.1f} % with" in found["findings"][0]
    text = amplitude.tables(base, ran["amplitude"][1])
    assert "| L1_attn_c_proj |" in text
    assert "| R2 |" in text
    assert "PR of white noise" in text


@pytest.mark.parametrize(
    ("make", "config", "field", "value", "message"),
    [
        (
            redundancy.make_study,
            redundancy_config,
            "parts",
            "layer",
            r"config.parts: there is no part 'layer'; nearest: la",
        ),
        (
            crystallization.make_study,
            crystals_config,
            "crystals.forms",
            "rank1",
            r"config.crystals.forms: no form 'rank1'",
        ),
        (
            crystallization.make_study,
            crystals_config,
            "crystals.pattern",
            "x",
            r"config.crystals.pattern='x' matches no ma",
        ),
    ],
)
def test_what_there_is_not_is_refused(make, config, field, value, message, base):
    given = config.get_config("tiny")
    given.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        make(given, 256, base, *([{}] if make is redundancy.make_study else []))
