"""`experiments.artifact_size`: figures from shapes are those of real files; the claims beside them are the paper's."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import artifact_size
from experiments.artifact_size import GPTQ_BYTES_PER_PARAMETER, ROWS, figures
from freezejax import artifact, models

MODULE = "experiments.artifact_size"
SHARED = Path(os.environ.get("FREEZEJAX_SHARED", Path(__file__).resolve().parents[3] / "shared"))
TOY = {"family": "geglu", "num_layers": 2, "model_dim": 64, "num_heads": 2, "vocab_size": 300}
GOLF = {**TOY, "family": "parameter_golf", "num_kv_heads": 1}
LIMIT = 16_000_000


def row(model, seeded):
    return artifact_size._Row("small", model, seeded, None, None, 1e6, "")


def params_of(model):
    """Weights as after some training: none is zero, which would cost nothing."""
    shapes = jax.eval_shape(models.build(**model).init, jax.random.key(0))
    rng = np.random.default_rng(0)

    def drawn(leaf):
        is_root = leaf.dtype == np.uint32
        return np.zeros(2, np.uint32) if is_root else (0.02 * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree.map(drawn, shapes)


def by_name():
    return {found["name"]: found for found in (figures(row, 0, LIMIT) for row in ROWS)}


@pytest.mark.parametrize(
    ("model", "seeded"),
    [
        *((TOY, ""), (TOY, r"blocks/\d+/mlp/(gate|up)/kernel"), (TOY, r"blocks/\d+/mlp/(gate|up|down)/kernel")),
        *((GOLF, ""), (GOLF, r"blocks/\d+/mlp/fc/kernel")),
    ],
)
def test_figures_from_shapes_are_those_of_files(model, seeded, tmp_path):
    found = figures(row(model, seeded), 0, LIMIT)
    assert found["parameters"] == models.count(params_of(model))
    params = params_of(found["model"])
    floats = [leaf for leaf in jax.tree.leaves(params) if leaf.dtype == "float32"]
    assert found["stored_parameters"] == sum(leaf.size for leaf in floats)
    assert (found["stored_parameters"] < found["parameters"]) == bool(seeded)
    for codec in ("int8", "int6"):
        saved = artifact.save(tmp_path / "x.fjax", params, model=found["model"], codec=codec, compressor="none")
        assert found["bytes"][codec] == saved.bytes
    saved = artifact.save(tmp_path / "x.fjax", params, model=found["model"], codec="int6", compressor="brotli")
    assert found["bytes"]["int6_brotli_low"] <= saved.bytes <= found["bytes"]["int6_brotli_high"]
    assert saved.bytes == pytest.approx(found["bytes"]["int6_brotli"], rel=0.1)
    assert found["bytes"]["gptq"] == round(GPTQ_BYTES_PER_PARAMETER * found["stored_parameters"])


def test_counterpart_the_files_of_another_model_differ(tmp_path):
    found = figures(row(TOY, ""), 0, LIMIT)
    other = {**TOY, "num_layers": 3}
    saved = artifact.save(tmp_path / "x.fjax", params_of(other), model=other, codec="int8", compressor="none")
    assert found["bytes"]["int8"] != saved.bytes


# Section 9, then the artifact column of section 2, whose models are those of its table and of its key insight.
CLAIMS = {
    "Standard 11L 512d": (34.4e6, 34.4e6, 15.9e6),
    "Selective 11L 512d": (34.4e6, 21.7e6, 10.0e6),
    "Selective 13L 512d": (40.2e6, 26.5e6, 12.2e6),
    "Baseline 6L 192d": (None, None, 2.4e6),
    "Selective 6L 192d": (None, None, 1.5e6),
    "Selective 8L 256d": (None, None, 3.3e6),
    "Selective 12L 384d": (None, None, 7.3e6),
    "Whole MLP seeded 12L 384d": (None, None, 7.3e6),
    "Trained 12L 384d": (None, None, 17.7e6),
}


def test_the_claims_are_the_papers():
    assert {r.name: (r.claimed_parameters, r.claimed_stored, r.claimed_bytes) for r in ROWS} == CLAIMS


@pytest.mark.skipif(not (SHARED / "seeds").is_dir(), reason="the shared folder with the paper's text is missing")
def test_the_claims_stand_in_the_papers_text():
    text = "\n".join(path.read_text() for path in (SHARED / "seeds").glob("*.txt"))
    for name, (parameters, stored, size) in list(CLAIMS.items())[:3]:
        assert f"{name} {parameters / 1e6:.1f}M {stored / 1e6:.1f}M ~{size / 1e6:.1f}MB" in text
    for line in (
        *("Baseline (fully trained) 6L 192d 0% 3.2531 2.4MB", "Selective freeze gate+up 6L 192d 37% -2.1% 1.5MB"),
        *(
            "Selective freeze 8L 256d 37% 3.1427 -3.4% 3.3MB",
            "Selective + dropout 12L 12L 384d 37% 2.8803 -11.5% 7.3MB",
        ),
        "Fully trained 12L (no freeze) 12L 384d 0% 2.7295 -16.1% 17.7MB",
    ):
        assert line in text


def test_what_is_said_of_each_disagreement_is_so():
    found = by_name()
    for name in ("Standard 11L 512d", "Selective 13L 512d"):  # "+0.6 M"
        assert CLAIMS[name][0] - found[name]["parameters"] == pytest.approx(0.6e6, abs=0.1e6)
    frozen = found["Selective 11L 512d"]  # "freezing fc leaves 34.4 - 11.5 = 22.9 M, not 21.7 M"
    assert frozen["parameters"] - frozen["stored_parameters"] == pytest.approx(11.5e6, abs=0.05e6)
    assert frozen["stored_parameters"] + 0.6e6 == pytest.approx(22.9e6, abs=0.1e6)
    assert found["Selective 13L 512d"]["stored_parameters"] + 0.6e6 == pytest.approx(26.5e6, abs=0.1e6)
    for name in ("Standard 11L 512d", "Selective 11L 512d", "Selective 13L 512d"):  # bytes = rate * claimed stored
        assert CLAIMS[name][1] * GPTQ_BYTES_PER_PARAMETER == pytest.approx(CLAIMS[name][2], abs=0.06e6)
    for name in ("Baseline 6L 192d", "Selective 6L 192d", "Selective 8L 256d", "Whole MLP seeded 12L 384d"):
        assert found[name]["bytes"]["int8"] == pytest.approx(CLAIMS[name][2], rel=0.05)  # "int8, uncompressed"
    assert found["Selective 12L 384d"]["bytes"]["int8"] > 1.4 * CLAIMS["Selective 12L 384d"][2]  # "down is stored"
    trained = found["Trained 12L 384d"]  # "too big at int8; at int6 it fits"
    assert trained["bytes"]["int8"] == pytest.approx(CLAIMS["Trained 12L 384d"][2], rel=0.03)
    assert not trained["fits"]["int8"]
    assert trained["fits"]["int6"]


def test_a_model_fits_to_the_byte():
    size = figures(ROWS[3], 0, LIMIT)["bytes"]["int8"]
    for limit, fits in ((size + 1000, True), (size + 999, False)):
        assert figures(ROWS[3], 1000, limit)["fits"]["int8"] is fits


def one_line(ended):
    assert ended.code == 2, ended
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    return ended.err


def test_the_command_prints_and_writes_the_table(command, tmp_path):
    code, out = tmp_path / "train.py", tmp_path / "sizes.json"
    code.write_text("#" * 12_345)
    ended = command(MODULE, f"--code={code}", "--budget=3000000", f"--out={out}")
    assert ended.code == 0, ended
    written = json.loads(out.read_text())
    assert written["budget"] == 3_000_000
    assert written["rows"] == json.loads(json.dumps([figures(row, 12_345, 3_000_000) for row in ROWS]))
    assert {r["name"]: r["fits"]["int6"] for r in written["rows"] if r["fits"]["int6"]}.keys() == {
        *("Baseline 6L 192d", "Selective 6L 192d", "Selective 8L 256d")
    }
    assert "12,345 code bytes within 3,000,000" in ended.out
    assert all(row.name in " ".join(ended.out.split()) for row in ROWS)
    assert not [path.name for path in tmp_path.iterdir() if path not in (code, out)]


def test_bad_flags_are_one_line(command, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for arguments, words in [
        ((f"--code={tmp_path / 'none.py'}",), f"--code={tmp_path / 'none.py'}: no such file"),
        ((f"--code={tmp_path / 'empty'}",), "a folder without .py files"),
        (("--budget=0",), "budget"),
        (("--budget=16MB",), "budget"),
        ((f"--out={tmp_path / 'file' / 'x.json'}",), f"--out={tmp_path / 'file' / 'x.json'}: cannot be written"),
        (("more",), "unexpected argument 'more'"),
    ]:
        assert words in one_line(command(MODULE, *arguments))


def test_the_committed_claims_are_those_of_todays_shapes():
    path = Path(artifact_size.__file__).parents[1] / "results" / "artifact_size" / "claims.json"
    told = [claim._asdict() for row in ROWS for claim in artifact_size.claims(figures(row, 0, 16_000_000))]
    assert json.loads(path.read_text(encoding="utf-8"))["claims"] == told
