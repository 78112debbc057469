"""The studies of a pretrained model: what each freezes and replaces, on a base of two tiny blocks made on the spot."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import amplitude, amplitudes, bases, crystallization, diagnostics, pretrain, redundancy
from experiments.bases import Base
from experiments.configs import amplitude as amplitude_config
from experiments.configs import crystallization as crystals_config
from experiments.configs import redundancy as redundancy_config
from experiments.engine import lock
from experiments.engine.study import run_study
from experiments.report import heatmap
from experiments.report.statistics import interval, same_figure
from experiments.report.table import with_ci
from freezejax import UserError, models
from freezejax.analysis import participation_ratio
from freezejax.paths import by_path
from freezejax.weights import matrix

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
    assert "rank correlation" in (last := found["findings"][-1])
    for measure in ("moved", "gradient norm, after", "kurtosis", "alignment with E^T E"):
        assert f" {measure} " in last
    assert [row["name"] for row in found["rows"] if "measured" in row] == ["full"]  # it alone has all gradients
    assert all(len(runs) == 2 for each in rows["full"]["measured"].values() for runs in each.values())
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
    rest = {"kurtosis"}  # which may have either sign
    assert all(value > 0 for values in kept.values() for name, value in values.items() if name not in rest)
    assert len(kept["L0_attn_c_proj"]) == 12
    measured = summary(ran, "redundancy")["rows"][0]["measured"]
    diagnostics.write_after(folder, measured)
    later = json.loads((folder / diagnostics.FILE).read_text())["after"]
    assert later.keys() == kept.keys()
    assert later["L1_mlp_c_fc"]["moved"] == pytest.approx(np.mean(measured["moved"]["L1_mlp_c_fc"]))
    (folder / diagnostics.FILE).write_text(json.dumps({**file, "matrices": {"read": {}}}))
    assert diagnostics.of_base(base, config, folder) == {"read": {}}
    other = {**file["of"], "measures": ["norm"]}
    (folder / diagnostics.FILE).write_text(json.dumps({"of": other, "matrices": {"read": {}}}))
    assert diagnostics.of_base(base, config, folder).keys() == kept.keys()  # of something else: measured again
    assert json.loads((folder / diagnostics.FILE).read_text())["of"] == file["of"]


def test_what_is_measured_after_training_is_of_the_trained_weights(ran, base):
    folder, config = ran["redundancy"]
    measures, start = diagnostics.after(base, config), base.params()
    grown = jax.tree.map(lambda leaf: 1.5 * leaf, start)
    moved = measures["moved"](grown)
    assert moved == pytest.approx(dict.fromkeys(moved, 0.5), rel=1e-5)
    before = {name: each["Fisher"] for name, each in diagnostics.of_base(base, config, folder).items()}
    assert measures["Fisher, after"](start) == pytest.approx(before, rel=1e-5)  # nothing has trained yet
    assert measures["gradient norm, after"](grown) != pytest.approx(measures["gradient norm, after"](start), rel=1e-2)


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
    measured = {**diagnostics.of_base(base, config, folder)}
    text = crystallization.scan(found, measured, earlier)
    rows = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in text.splitlines()}
    assert measured.keys() <= rows.keys()  # every matrix, those that were not replaced with empty cells
    ratio = measured["L1_mlp_c_fc"]["participation ratio"]
    assert rows["L1_mlp_c_fc"][1] == f"{ratio:.1f}"
    told = [claim.claim for claim in crystallization.claims(measured, earlier, "code")]
    assert "participation ratio of L0_attn_c_proj: 145.3" in told
    assert len(told) == 3  # L0 c_attn has no first component in the paper, L4 c_proj is not here
    assert set(rows["L1_mlp_c_fc"][4:]) <= {"", " |"}
    for ratio, share, verdicts in ((140.0, 0.3, "reproduced, other"), (16.0, 0.115, "other, reproduced")):
        figures = {"participation ratio": ratio, "first component": share}
        measured["L0_attn_c_proj"] = {**measured["L0_attn_c_proj"], **figures}
        assert f"| 145.3 | 12.0 % | {verdicts} |" in crystallization.scan(found, measured, earlier)
    after = {row["name"]: row["delta_pct"] for row in found["rows"]}
    assert f"{earlier['L0_attn_c_proj']['random']:+.2f} %" in text
    assert f"{after['rank_1_L0_attn_c_proj']:+.2f} %" in text
    assert any(told.startswith("random: of 1 matrices") for told in found["findings"])
    some = {**found, "rows": [row for row in found["rows"] if row["name"] != "random_L0_attn_c_proj"]}
    part = crystallization.scan(some, diagnostics.of_base(base, config, folder), earlier)  # config.variants named some
    assert f"{after['rank_1_L0_attn_c_proj']:+.2f} %" in part


def test_efficiency_is_the_share_of_what_everything_gains(ran, base):
    found, ce = summary(ran, "amplitude"), losses(ran, "amplitude")

    def told(kind):
        gain = lambda name, seed: ce["nothing", seed] - ce[name, seed]  # noqa: E731
        return with_ci(*interval([100 * gain(f"only_{kind}", seed) / gain("full", seed) for seed in (0, 1)]), 1)

    (sentence,) = found["findings"]
    assert f"mlp_c_fc {told('mlp_c_fc')} % with" in sentence
    assert "±" in told("mlp_c_fc")
    assert re.search(
        rf"attn_c_proj {told('attn_c_proj')} % with \S+ % of the parameters \(paper 62: 35.4 % with", sentence
    )
    measured = amplitudes.of_base(base, ran["amplitude"][1])
    text = amplitudes.as_markdown(measured)
    assert "| L1_attn_c_proj |" in text
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines()}
    assert "±" in lines["alignment"]
    assert lines["R2"].split(" | ")[2].endswith("-0.027")
    assert lines["R2"].removesuffix(" |").split(" | ")[-1] in ("reproduced", "other")
    assert lines["amplitudes"].endswith(" |  |  |")  # of which the paper says nothing
    assert "(2.95, 53.9, 0.742, 89.0) | " in lines["L0_attn_c_attn"]
    assert re.search(r" of 4(: .*)? \|$", lines["L0_attn_c_attn"])
    assert "PR of white noise" in text
    claims = [*amplitudes.claims(measured, "code")]
    assert len(claims) == 4 + 5  # of L0 c_attn, the one matrix of the paper here, and of all c_proj
    (row,) = (row for row in measured.matrices if row["matrix"] == "L0_attn_c_attn")
    told = ("PR of L0_attn_c_attn: 2.950", f"{row['PR']:.3f}", same_figure(row["PR"], 2.95))
    assert claims[0][1:4] == told


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
