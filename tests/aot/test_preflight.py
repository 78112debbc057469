"""Preflight as a user starts it: a small and a large config for 8 H100s and 8 TPU v5e, and bad input."""

import json
import re

import pytest

from experiments import preflight
from experiments.configs import selective
from freezejax.errors import UserError

PREFLIGHT = "experiments.preflight"
SMALL = (  # two phases: the whole model, then gate and up frozen
    "--config=experiments/configs/progressive.py:tiny",
    "--config.model.vocab_size=256",
    "--config.train.mesh.fsdp=8",
    "--variant=progressive_small",
)
LARGE = (  # the Parameter Golf baseline, 524,288 tokens a step, in its full width; of its 7 layers one
    "--config=experiments/configs/parameter_golf.py:h100x8",
    "--config.model.vocab_size=1024",
    *(f"--config.sizes.{size}.num_layers=1" for size in ("small", "medium", "large")),
    "--variant=baseline",
)
MACHINES = ("h100:1x1x8", "v5e:2x4")


def preflights(start, tmp_path, *arguments, **environment):
    path = tmp_path / "found.json"
    ended = start(PREFLIGHT, *arguments, f"--json={path}", **environment)
    return ended, json.loads(path.read_text()) if path.exists() else None


@pytest.mark.parametrize("topology", MACHINES)
def test_a_small_config(topology, compiler, start, tmp_path):
    compiler(topology)
    ended, found = preflights(start, tmp_path, *SMALL, f"--topology={topology}", "--price_per_hour=2.5")
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"1 variants, 2 phases, 2 distinct programs", ended.stdout)
    assert "Everything fits." in ended.stdout
    assert "$" in ended.stdout
    assert [use["start"] for row in found["programs"] for use in row["phases"]] == [0, 27]
    full, frozen = (row["sent_bytes"] for row in found["programs"])
    assert full["all-gather"] == frozen["all-gather"] > 0
    reduced = [sum(sent.get(kind, 0) for kind in ("reduce-scatter", "all-reduce")) for sent in (full, frozen)]
    assert reduced[1] < reduced[0]
    assert found["variants"][0]["seconds"] == pytest.approx(sum(_seconds(row) for row in found["programs"]))


def _seconds(row):
    return sum(use["stop"] - use["start"] for use in row["phases"]) * row["step_seconds"]


def test_a_large_config(compiler, start, tmp_path):
    compiler("h100:1x1x8")
    ended, found = preflights(start, tmp_path, *LARGE, "--topology=h100:1x1x8")
    assert ended.returncode == 0, ended.stderr
    (program,) = found["programs"]
    assert program["fits"]
    assert 2**30 < program["peak_bytes"] < found["limit_bytes"]
    # Rows are split and weights are not: each device sends every gradient twice around the ring, that of the embedding
    # once more for each of the 4 microbatches.
    weights, embedding = 3_147_264, 1024 * 512
    gradients = 2 * 4 * (weights + 4 * embedding) * 7 / 8
    assert program["sent_bytes"]["all-reduce"] == pytest.approx(gradients, abs=1024)
    assert sum(program["sent_bytes"].values()) < 1.3 * gradients


def test_what_does_not_fit_is_said_and_is_exit_code_1(compiler, start, tmp_path):
    """The GPU compiler takes a program of any size, here more than a share of the memory."""
    compiler("h100:1x1x8")
    share = {"XLA_CLIENT_MEM_FRACTION": "0.00001"}
    one_phase = (*SMALL[:-1], "--variant=baseline")
    ended, found = preflights(start, tmp_path, *one_phase, "--topology=h100:1x1x8", **share)
    assert ended.returncode == 1, ended.stderr
    assert "Does not fit: baseline, steps 0 to 80" in ended.stdout
    assert not found["fits"]
    assert found["programs"][0]["peak_bytes"] > found["limit_bytes"]


def test_where_the_tpu_compiler_gives_up_the_program_does_not_fit(compiler, start):
    compiler("v5e:2x4")
    ended = start("tests.aot.too_large")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert not found["fits"]
    assert found["peak"] == pytest.approx(74.65 * 2**30, rel=0.01)  # 200,000 x 100,000 in float32, padded


BAD = {
    ("--topology=h100:8",): "expected slices x hosts x GPUs, as h100:1x1x8",
    ("--topology=",): "no chip ''",
    ("--efficiency=2",): "efficiency=2",
    ("--price_per_hour=-1",): "price_per_hour",
    ("--config.train.mesh.fsdp=3",): "train.mesh",
}


@pytest.fixture(scope="module")
def refused(start):
    """Exit code, output and errors by what is bad."""
    ended = start("tests.aot.bad_input", json.dumps([[*SMALL, *arguments] for arguments in BAD]))
    assert ended.returncode == 0, ended.stderr
    return dict(zip(BAD, json.loads(ended.stdout), strict=True))


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_line_and_exit_code_2(arguments, compiler, refused):
    compiler("h100:1x1x8")
    code, output, errors = refused[arguments]
    assert code == 2
    assert output == ""
    assert errors.count("\n") == 1
    assert BAD[arguments] in errors


def test_bad_names_are_told():
    config = selective.get_config("tiny")
    config.model.vocab_size = 256
    study = preflight.make_study(config)
    with pytest.raises(UserError, match="--variant: no variant is named 'baselin'; nearest: baseline"):
        preflight.chosen(study, "baselin")
    config.experiment = "selectiv"
    with pytest.raises(UserError, match=r"config\.experiment='selectiv': no study is named so"):
        preflight.make_study(config)


def test_the_largest_and_named_variants_in_the_studys_order():
    config = selective.get_config("tiny")
    config.model.vocab_size = 256
    study = preflight.make_study(config)
    assert [variant.name for variant in preflight.chosen(study, "largest, selective_small")] == [
        "selective_small",
        "trained_large",
    ]
    assert len(preflight.chosen(study, "")) == len(study.variants)
