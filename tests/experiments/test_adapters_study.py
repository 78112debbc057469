"""The studies of adapters: rows and controls as data, and one run whose losses are those of a model in numpy.

Every kernel here is square, so that an adapter on the wrong side still runs; each kind is put there on purpose, and the
model in numpy must tell.
"""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import adapter_rows, adapters, correction
from experiments.configs import adapters as adapters_config
from experiments.configs import correction as correction_config
from experiments.engine import matching
from experiments.engine.results import packing
from experiments.engine.study import load_corpus, run_study
from experiments.engine.variants import Evaluators, paper_of
from experiments.repack import repacked
from freezejax import UserError, artifact, models
from freezejax.models import layers
from freezejax.roles import Role, leaves, map_leaves
from freezejax.training.checkpoints import load_params
from freezejax.weights import (
    DoraWeight,
    GainWeight,
    LoraWeight,
    LowBitWeight,
    RandLoraWeight,
    ScalarWeight,
    ScaleShiftWeight,
    SupermaskWeight,
    VeraWeight,
    linear,
    matmul,
    matrix,
)
from freezejax.weights.linear import scaled
from tests.experiments.numpy_geglu import losses

STUDIES = {"adapters": (adapters, adapters_config), "correction": (correction, correction_config)}
above_break_even = pytest.mark.filterwarnings("ignore:weights. what is trained beside:UserWarning")


@pytest.fixture(scope="module")
def made():
    """Config and study by name, for bytes: there the fewest bytes are left beside the embedding."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "weights: what is trained beside")  # the sweep ends above the break-even
        configs = {name: config.get_config("cpu") for name, (_, config) in STUDIES.items()}
        return {name: (config, STUDIES[name][0].make_study(config, 256)) for name, config in configs.items()}


@above_break_even
@pytest.mark.parametrize("name", STUDIES)
def test_every_row_can_be_built_and_every_control_is_of_its_rows_bytes_and_maps(name, made):
    config, found = made[name]
    variants = {variant.name: variant for variant in found.variants}
    assert len(variants) == len(found.variants)
    assert found.variants[0].name == "baseline"
    pairs = [(contrast.variant, contrast.reference) for contrast in found.contrasts]
    assert len(set(pairs)) == len(pairs)
    assert {row for pair in pairs for row in pair} == set(variants)  # every row answers something
    size = lambda variant: matching.file_bytes(variant.model, **packing(config))  # noqa: E731
    controls = [variant for variant in found.variants if variant.same_bytes_as]
    assert len(controls) >= 4
    for variant in controls:
        frozen = variants[variant.same_bytes_as]
        assert size(variant) == pytest.approx(size(frozen), rel=0.025)  # LoRA's codes are allowed for
        (rule,), maps = variant.model["weights"], [r for r in frozen.model["weights"] if r["kind"] == "map"]
        assert rule == {**maps[-1], "scale": "fan_in", "trained": True}
        assert {**variant.train, "optimizer": None} == {**frozen.train, "optimizer": None}
        rates = [run.train["optimizer"]["learning_rate"] for run in (variant, frozen)]
        assert name != "correction" or rates[0] == rates[1]  # of adapters each side has its own
        assert variant.model["dropout"] == frozen.model["dropout"] == 0


def test_the_corrections_have_the_papers_figures_and_its_share_of_the_width(made):
    _, found = made["correction"]
    paper = {v.name: paper_of(v.papers, "gutenberg").delta_pct for v in found.variants if v.papers}
    assert paper == {"gelu_r32": 10.0, "gelu_r64": 8.2, "gelu_r128": 6.2, "large_gelu_r64": 0.23}
    ranks = {v.name: v.model["correction_rank"] for v in found.variants if v.name in paper}
    assert ranks == {"gelu_r32": 16, "gelu_r64": 32, "gelu_r128": 64, "large_gelu_r64": 27}  # widths 96 and 160
    numbers = {  # trained by adapters and corrections
        v.name: sum(leaf.value.size for leaf in leaves(matching.abstract_params(v.model)) if leaf.role is Role.ADAPTER)
        for v in found.variants
        if v.name.endswith("r64")
    }
    assert numbers["lora_as_r64"] == pytest.approx(numbers["gelu_r64"], rel=0.04)


_REFUSED = [("model.family", "parameter_golf", "those of geglu"), ("lora.rank", 3, "are swept too")]


@above_break_even
def test_what_the_study_of_adapters_refuses():
    for field, value, words in [
        ("model.family", "parameter_golf", "those of geglu"),
        ("lora.rank", 3, "are swept too"),
    ]:
        config = adapters_config.get_config("tiny")
        config.update_from_flattened_dict({field: value})
        with pytest.raises(UserError, match=words):
            adapters.make_study(config, 256)


def test_what_is_found_follows_from_the_summary():
    def row(name, rank):
        return {"name": name, "model": {"weights": [{"kind": "map"}, {"kind": "lora", "rank": rank}]}}

    def contrast(name, reference, effect):
        return {"variant": name, "reference": reference, "effect_pct": effect, "effect_pct_ci95": 0.5}

    rows = [row("lora_r1", 1), row("lora_r4", 4), row("lora_r8", 8), row("dora", 2)]
    rows.append({**row("pr_1870", 2), "base_seed_sd": 0.03, "training_seed_sd": 0.01})
    effects = {"lora_r1": 9.0, "pr_1870": 2.0, "lora_r4": 0.6, "lora_r8": 0.4, "dora": 0.0}
    contrasts = [contrast(name, "pr_1549", effect) for name, effect in effects.items()]
    contrasts += [contrast("lora_r8", "trained_same_maps", 3.0)]
    largest, trained, spread = adapters.findings({"rows": rows, "contrasts": contrasts})
    assert largest.endswith("the smallest rank of which this holds is 8.")  # of rank 4 it ends at 1.1
    assert trained.endswith("of no rank does this hold.")
    assert "3.0 times as much" in spread


SQUARE = {"mlp_mult": 1.0, "separate_qkv": True}  # of one size, whatever reads or writes
VARIANTS = ("baseline", "scalar_lora", "pr_1195")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Config and folder of a study that ran."""
    config = adapters_config.get_config("tiny")
    config.model.update(SQUARE)
    config.sizes.small.update(num_layers=2)
    config.variants = ",".join(VARIANTS)
    config.train.update(steps=12, seq_len=16, eval_every=0, log_every=6)
    config.lora.ranks = (1, 2, 8, 16)
    folder = tmp_path_factory.mktemp("adapters") / "run"
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # for optax's Adam, in the threads that compile too
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FREEZEJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
            for module in (adapters, adapter_rows):
                patch.setattr(module, "same_bytes", lambda config: {})  # no time for controls here
            run_study(adapters.make_study, config, folder)
            yield config, folder
    finally:
        jax.config.update("jax_numpy_dtype_promotion", before)


def result_of(folder, variant):
    return json.loads((folder / "runs" / variant / "seed_0" / "result.json").read_text())


def in_numpy(params, corpus, config):
    """Validation loss of the windows that the study scores."""
    length = config.train.seq_len
    windows = (len(corpus.val) - 1) // length
    starts = length * np.arange(0, windows, max(1, windows // config.data.val_sequences))
    text = np.stack([np.asarray(corpus.val[start : start + length + 1]) for start in starts]).astype(np.int64)
    return np.mean(losses(params, text[:, :-1], text[:, 1:], heads=1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_losses_of_a_run_are_those_of_its_weights_in_numpy(ran, variant, monkeypatch):
    (config, folder), corpus = ran, load_corpus(ran[0])
    result, path = result_of(folder, variant), folder / "runs" / variant / "seed_0"
    model = models.build(**result["model"])
    params = load_params(path / "params", model.abstract_params())
    _, packed, _ = artifact.load(path / "model.fjax")
    assert in_numpy(params, corpus, config) == pytest.approx(result["val_ce"], rel=1e-6)
    assert in_numpy(packed, corpus, config) == pytest.approx(result["packed_ce"], rel=1e-6)
    if variant == "baseline":
        return
    for kind in ("lora", "scalar") if variant == "scalar_lora" else ("scale_shift",):  # as the study would score them
        with monkeypatch.context() as patch:
            patch.setattr(*WRONG[kind])
            scored = Evaluators(config, corpus).of(result["model"], model.apply, config.train.to_dict())(params)
        assert in_numpy(params, corpus, config) != pytest.approx(scored["val_ce"], rel=1e-6)


def test_betas_are_told_run_by_run_and_in_words(ran):
    _, folder = ran
    summary = json.loads((folder / "summary.json").read_text())
    betas = result_of(folder, "scalar_lora")["measured"]["beta"]
    assert len(betas) == 2 * 7
    assert all(0 < beta != 1 for beta in betas.values())
    rows = {row["name"]: row for row in summary["rows"]}
    assert rows["scalar_lora"]["measured"] == {"beta": {path: [beta] for path, beta in betas.items()}}
    assert "measured" not in rows["pr_1195"]
    assert "measured" not in result_of(folder, "baseline")
    ends = f"{min(betas.values()):.3f} to {max(betas.values()):.3f}"
    assert ends in (folder / "report.html").read_text()
    (sentence,) = summary["findings"]
    assert "positive in 14 of 14" in sentence
    assert sentence in (folder / "report.html").read_text()


def test_packing_again_gives_the_studys_file_with_its_codec_and_loses_more_with_fewer_bits(ran):
    _, folder = ran
    int4, int8, float16 = repacked(folder, ["scalar_lora"], ["int4", "int8", "float16"])
    result = result_of(folder, "scalar_lora")
    assert int8.loss.mean == result["packed_bpb"] - result["val_bpb"]
    assert int4.bytes < int8.bytes < float16.bytes
    assert abs(int4.loss.mean - float16.loss.mean) > abs(int8.loss.mean - float16.loss.mean)
    with pytest.raises(UserError, match="no variant 'scalar' has a finished run here; nearest: scalar_lora"):
        list(repacked(folder, ["scalar"], ["int4"]))


KINDS = {  # rules over maps
    "lora": [{"kind": "lora", "rank": 5, "alpha": 3.0}],
    "dora": [{"kind": "dora", "rank": 5}],
    "vera": [{"kind": "vera", "rank": 32}],
    "vera_scalars": [{"kind": "vera", "rank": 32, "scalars": True}],
    "randlora": [{"kind": "randlora", "rank": 8}],
    "gain": [{"kind": "gain"}],
    "scalar": [{"kind": "scalar"}, {"kind": "lora", "rank": 3}],
    "scale_shift": [{"kind": "scale_shift"}],
    "supermask": [{"kind": "supermask"}],
    "lowbit": [{"kind": "lowbit", "bits": 2}],
    "correction": [],
}


def _randlora(self, x):
    return matmul(x, (self._down() @ matrix(self.b)).T)


WRONG = {  # what each would compute with its parts on the other side of its matrix
    "lora": (LoraWeight, "__call__", lambda w, x: linear(x, w.base) + linear(linear(x, w.b.T), w.a.T) * w.scale),
    "dora": (DoraWeight, "__call__", lambda w, x: LoraWeight.__call__(w, scaled(x, w._factor()))),
    "vera": (VeraWeight, "added", lambda w, x: linear(scaled(linear(scaled(x, w.g), w.a), w.d), w.b)),
    "vera_scalars": (VeraWeight, "added", lambda w, x: matmul(x, w.delta().T)),
    "randlora": (RandLoraWeight, "added", _randlora),
    "gain": (GainWeight, "__call__", lambda w, x: linear(scaled(x, w.gain), w.base)),
    "scalar": (ScalarWeight, "__call__", lambda w, x: linear(x, w.base) / w.beta),
    "scale_shift": (ScaleShiftWeight, "__call__", lambda w, x: scaled(linear(x + w.shift[None, None], w.base), w.gain)),
    "supermask": (SupermaskWeight, "__call__", lambda w, x: matmul(x, matrix(w.base) * w.mask.T)),
    "lowbit": (LowBitWeight, "__call__", lambda w, x: matmul(scaled(x, w.gain), w.materialize() / w.gain[None])),
    "correction": (layers, "corrected", lambda mlp, x, y: y + mlp.correction(y)),
}
TOKENS = np.arange(22, dtype=np.int32).reshape(2, 11)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_on_the_wrong_side_is_seen(kind, monkeypatch):
    model = {"family": "geglu", "num_layers": 1, "model_dim": 32, "num_heads": 2, "vocab_size": 32, **SQUARE}
    pattern = adapter_rows.places(1)["all"]
    maps = [] if kind in ("lowbit", "correction") else [matching.random_map(pattern)]
    model = matching.with_maps(model, *maps, *({"pattern": pattern, **rule} for rule in KINDS[kind]))
    if kind == "correction":
        model |= {"correction": "gelu", "correction_rank": 4}
    built = models.build(**model)
    params, rng = built.init(jax.random.key(1), jax.random.key(2)), np.random.default_rng(3)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.value.shape), jnp.float32)  # noqa: E731
    params = map_leaves(lambda leaf: draw(leaf) if leaf.role in (Role.ADAPTER, Role.GAIN) else leaf.value, params)
    found = lambda: np.asarray(built.apply(params, TOKENS[:, :-1], targets_BxT=jnp.asarray(TOKENS[:, 1:])))  # noqa: E731
    wanted = losses(params, TOKENS[:, :-1], TOKENS[:, 1:], heads=2)
    np.testing.assert_allclose(found(), wanted, rtol=2e-4)
    monkeypatch.setattr(*WRONG[kind])
    assert np.abs(found() / wanted - 1).max() > 1e-2
