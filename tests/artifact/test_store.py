"""Law 8: a loaded file gives the logits of the quantized model in memory, bit for bit, from the file alone."""

import itertools
import subprocess
import sys

import jax
import numpy as np
import pytest

from freezejax import artifact, models
from freezejax.artifact import store
from freezejax.errors import UserError
from freezejax.paths import leaf_paths
from freezejax.weights import draw_maps

RULES = [("role=adapter", "int8"), (".*", "int6")]


def same_bits(a, b):
    assert leaf_paths(a) == leaf_paths(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize(
    ("name", "codec"),
    [("maps", RULES), *itertools.product(["geglu", "parameter_golf"], artifact.CODECS)],
    ids=str,
)
def test_loaded_equals_quantized_in_memory(name, codec, trained, tmp_path):
    config, params = trained(name)
    wanted = artifact.quantize(params, codec)
    for compressor in artifact.COMPRESSORS:
        path = tmp_path / f"{compressor}.fjax"
        saved = artifact.save(path, params, model=config, codec=codec, compressor=compressor)
        assert saved.bytes == path.stat().st_size == sum(saved.sizes.values())
        same_bits(artifact.load(path)[1], wanted)


@pytest.mark.parametrize("name", ["geglu", "parameter_golf", "maps"])
def test_loaded_logits_equal_those_of_the_quantized_model(name, trained, tokens, tmp_path):
    config, params = trained(name)
    artifact.save(tmp_path / "x.fjax", params, model=config, codec="int5", compressor="zlib")
    apply, loaded, _ = artifact.load(tmp_path / "x.fjax")
    wanted = jax.jit(models.build(**config).apply)(artifact.quantize(params, "int5"), tokens)
    assert np.asarray(jax.jit(apply)(loaded, tokens)).tobytes() == np.asarray(wanted).tobytes()


def test_the_law_fails_without_quantizing(trained, tmp_path):
    config, params = trained("geglu")
    artifact.save(tmp_path / "x.fjax", params, model=config)
    with pytest.raises(AssertionError):
        same_bits(artifact.load(tmp_path / "x.fjax")[1], params)


def test_quality_falls_by_six_decibels_a_bit(trained, tmp_path):
    config, params = trained("geglu")
    path = "blocks/1/mlp/up/kernel"
    quality = [
        artifact.save(tmp_path / "x.fjax", params, model=config, codec=codec, compressor="none").sqnr_db[path]
        for codec in ("int8", "int6", "int5", "int4", "float16")
    ]
    assert np.abs(np.array(quality[:4]) - [43.5, 31.6, 25.5, 19.5]).max() < 2
    assert quality[4] > 65


def test_metadata_is_what_was_saved(trained, tmp_path):
    config, params = trained("maps")
    tokenizer, notes = {"name": "bytes", "sha256": "ab" * 32}, {"steps": 3, "val": [1.5, None]}
    options = {"codec": RULES, "compressor": "zstd", "tokenizer": tokenizer, "notes": notes}
    saved = artifact.save(tmp_path / "x.fjax", params, model=config, **options)
    meta = artifact.read_metadata(tmp_path / "x.fjax")
    assert meta == artifact.load(tmp_path / "x.fjax")[2]
    assert meta["model"] == config
    assert {name: meta[name] for name in options} == options
    assert meta["seed"] == (0, 7)
    assert {t["path"]: t["sqnr_db"] for t in meta["tensors"]} == pytest.approx(saved.sqnr_db, abs=0.01)
    assert [found["path"] for found in meta["maps"]][:2] == ["blocks/0/mlp/gate/kernel", "blocks/0/mlp/up/kernel"]
    assert not any("seed" in t["path"] or t["path"].endswith("up/kernel") for t in meta["tensors"])


def test_the_same_model_gives_the_same_file(trained, tmp_path):
    config, params = trained("maps")
    for name in ("a", "b"):
        artifact.save(tmp_path / name, params, model=config)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_drawn_maps_are_not_stored(trained, tokens, tmp_path):
    config, params = trained("maps")
    held = draw_maps(params)
    artifact.save(tmp_path / "a", params, model=config)
    artifact.save(tmp_path / "b", held, model=config)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert leaf_paths(artifact.quantize(held)) == leaf_paths(held)


def test_all_zero_weights_keep_the_file_in_proportion(tmp_path):
    config = {"family": "geglu", "vocab_size": 256, "num_layers": 1, "model_dim": 256, "num_heads": 4}
    shapes = jax.eval_shape(models.build(**config).init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    saved = artifact.save(tmp_path / "x.fjax", params, model=config)
    assert saved.sizes["padding"] > 0
    assert 1000 * saved.bytes >= models.count(params) > 1000 * (saved.bytes - 1)
    assert not any(leaf.any() for leaf in jax.tree.leaves(artifact.load(tmp_path / "x.fjax")[1]))


IN_ANOTHER_PROCESS = """
import sys, jax, numpy as np
from freezejax import artifact
assert jax.device_count() == 8
apply, params, _ = artifact.load(sys.argv[1])
np.save(sys.argv[2], np.asarray(jax.jit(apply)(params, np.load(sys.argv[3]))))
"""


def test_another_process_with_eight_devices_gets_the_same_logits(trained, tokens, tmp_path, monkeypatch):
    config, params = trained("maps")
    artifact.save(tmp_path / "x.fjax", params, model=config)
    np.save(tmp_path / "tokens.npy", tokens)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    files = [str(tmp_path / name) for name in ("x.fjax", "logits.npy", "tokens.npy")]
    subprocess.run([sys.executable, "-c", IN_ANOTHER_PROCESS, *files], check=True)
    here = jax.jit(models.build(**config).apply)(artifact.quantize(params), tokens)
    assert np.load(tmp_path / "logits.npy").tobytes() == np.asarray(here).tobytes()


def _set(path, value):
    def change(params):
        leaves = [
            value if p == path else leaf for p, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(params), leaves)

    return change


UP, KERNEL = "blocks/0/mlp/gate/kernel", (64, 128)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (_set(UP, np.full(KERNEL, np.nan, np.float32)), {}, f"leaf '{UP}' is not finite"),
        (_set(UP, np.full(KERNEL, 1e9, np.float32)), {}, f"leaf '{UP}': magnitude 1e.09 is too large: int6"),
        (_set("ln_f/scale", np.full(64, 1e6, np.float32)), {}, "leaf 'ln_f/scale': magnitude 1e.06 is too large"),
        (_set(UP, np.zeros(KERNEL, np.int32)), {}, f"leaf '{UP}' is int32: an artifact stores float weights"),
        (_set(UP, np.zeros((64, 64), np.float32)), {}, f"wrong model: leaf '{UP}' has shape"),
        (lambda params: {**params, "head": np.zeros(3, np.float32)}, {}, "wrong model: it has no leaf 'head'"),
        (lambda params: {k: v for k, v in params.items() if k != "ln_f"}, {}, "leaf 'ln_f/scale' is missing"),
        (lambda params: params, {"compressor": "gzip"}, "there is no compressor 'gzip'; nearest: "),
        (lambda params: params, {"codec": "int3"}, "there is no codec 'int3'"),
        (lambda params: params, {"notes": object()}, "artifact header: Object of type object"),
        (lambda params: params, {"notes": float("nan")}, "artifact header: Out of range float values"),
        (lambda params: params, {"tokenizer": {"name": "x"}}, "artifact header: field 'tokenizer' is not"),
        (lambda params: params, {"model": {"family": "gegl"}}, "there is no model family 'gegl'; nearest: geglu"),
        (lambda params: params, {"model": {}}, "field 'model' names no family"),
    ],
)
def test_what_cannot_be_saved_is_told(change, options, message, trained, tmp_path):
    config, params = trained("geglu")
    with pytest.raises(UserError, match=message):
        artifact.save(tmp_path / "x.fjax", change(params), **{"model": config, "compressor": "none", **options})
    assert not list(tmp_path.iterdir())


def test_two_base_seeds_and_evil_patterns_are_told(trained, tmp_path):
    config, params = trained("maps")
    other = _set("blocks/1/mlp/up/kernel/base/seed", np.array([0, 8], np.uint32))(params)
    with pytest.raises(
        UserError, match=r"'blocks/1/mlp/up/kernel/base/seed' is \(0, 8\), but .* a model has one base seed"
    ):
        artifact.save(tmp_path / "x.fjax", other, model=config)
    evil = {**config, "weights": [{"pattern": "(.*)*/kernel", "kind": "map"}]}
    with pytest.raises(UserError, match="no repeated group"):
        artifact.save(tmp_path / "x.fjax", params, model=evil)


def test_an_unwritable_place_is_told_and_leaves_nothing(trained, tmp_path):
    config, params = trained("geglu")
    for folder, message in (("no", f"there is no folder {tmp_path / 'no'}; make it first"), ("a", "Not a directory")):
        (tmp_path / "a").write_text("a file")
        with pytest.raises(UserError, match=f"x.fjax: cannot be written: {message}$"):
            artifact.save(tmp_path / folder / "x.fjax", params, model=config, compressor="none")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_write_that_fails_leaves_the_old_file(trained, tmp_path, monkeypatch):
    config, params = trained("geglu")
    artifact.save(tmp_path / "x.fjax", params, model=config, compressor="none")
    before = (tmp_path / "x.fjax").read_bytes()
    monkeypatch.setattr(store.container, "to_bytes", lambda *_: 1)  # no bytes: writing it fails half-way
    with pytest.raises(TypeError):
        artifact.save(tmp_path / "x.fjax", params, model=config, codec="int4", compressor="none")
    assert [file.name for file in tmp_path.iterdir()] == ["x.fjax"]
    assert (tmp_path / "x.fjax").read_bytes() == before
