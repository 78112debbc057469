"""Bad input is one line and exit code 2 and leaves nothing behind; good input leaves what the design promises."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from experiments.engine import cli
from tests.experiments.forks import ROOT

STUDY, EVALUATE = "experiments.progressive", "experiments.evaluate"
SMALL = [
    "--config.variants=baseline,progressive_small",
    *("--config.train.steps=12", "--config.train.seq_len=16", "--config.train.batch_size=2"),
    *("--config.data.val_sequences=16", "--config.train.eval_every=6", "--config.train.log_every=2"),
]
# What is wrong, and what the line must say.
BAD = {
    ("--wrkdir=1",): "there is no flag --wrkdir; nearest: workdir",
    ("--confg=1",): "there is no flag --confg; nearest: config\n",
    ("--variants=baseline",): "there is no flag --variants; a field of the config is --config.variants=VALUE\n",
    ("--steps=5",): "there is no flag --steps; a field of the config is --config.train.steps=VALUE\n",
    ("--config.nosuch=1",): "no field 'nosuch'",
    ("--config.trainable=out",): "--config.trainable=out: the config has no field 'trainable'",  # its rows say that
    ("--config.scale=cpu",): "--config.scale=cpu: the config file says it; give its scale as --config=FILE.py:SCALE",
    ("--config.train.sed=1",): "--config.train.sed=1: the config has no field 'sed'",
    ("--config.train.stepz=3",): "--config.train.stepz=3: the config has no field 'stepz'; nearest: steps",
    ("--config.train.steps=abc",): "--config.train.steps=abc: expected an integer\n",
    ("--config.model.dropout=x",): "--config.model.dropout=x: expected a number\n",
    ("--config.train.steps=0",): "train.steps=0",
    ("--check", "--config.train.steps=0"): "train.steps=0",
    ("--config.train.steps=1",): "phases overlap",
    ("--config.train.steps=2147483648",): "train.steps=2147483648: expected below 2^31",
    ("--config.seeds=0",): "config.seeds=0",
    ("--config.base_seeds=0",): "config.base_seeds=0: expected from 1 to 10000",
    ("--config.base_seeds=9223372036854775808",): "config.base_seeds=9223372036854775808",
    ("--config.artifact.codec=int7",): "given as --config.artifact.codec=int7\n",
    ("--config.artifact.compressor=zip",): "given as --config.artifact.compressor=zip\n",
    ("--tensorboard=maybe",): "tensorboard=maybe",
    ("--config=experiments/configs/progressive.py:huge",): "no scale 'huge'",
    ("--config=missing.py",): "missing.py",
    ("--config=",): "empty",
    ("unexpected",): "unexpected argument 'unexpected'",
    ("--config.data.path=/nowhere/at/all",): "not a folder",
    ("--config.data.val_fraction=2",): "val_fraction",
    ("--config.data.tokenizer=bpe:many",): "bpe:many",
    ("--config.data.tokenizer=missing.model",): "missing.model",
    ("--config.data.eval_batch_size=0",): "data.eval_batch_size=0",
    ("--config.data.val_sequences=-1",): "data.val_sequences=-1",
    ("--config.variants=baselin",): "nearest: baseline",
    ("--config.paper=blog",): "config.paper='blog'",
    ("--config.freeze.pattern=(",): "config.freeze.pattern='('",
    ("--config.freeze.pattern=nothing",): "config.freeze.pattern='nothing'",
    ("--config.freeze.at=0",): "expected a fraction of the run",
    ("--config.freeze.at=1.0",): "expected a fraction of the run",
    ("--config.freeze.at=99",): "beyond the run of 12 steps",
    ("--config.model.dropout=1",): "dropout=1.0",
    ("--config.train.batch_size=100000",): "too few",
    ("--config.train.optimizer.name=adam",): "nearest: adamw; given as --config.train.optimizer.name=adam\n",
    ("--config.train.optimizer.learning_rate=nan",): "learning_rate",
    ("--config.model.family=gpt",): "no model family 'gpt'",
    ("--config.model.vocab_size=10",): "smaller than the 256 tokens",
    ("--config.sizes.medium.num_heads=5",): "num_heads=5",
}


def in_order(arguments):
    """A config file is named before its fields are set."""
    return [*arguments, *SMALL] if arguments[0].startswith("--config=") else [*SMALL, *arguments]


def check_one_line(ended):
    assert ended.code == 2, ended
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert ended.err.endswith("\n")
    assert "Traceback" not in ended.err + ended.out
    return ended.err


@pytest.fixture(scope="module")
def study(command, tmp_path_factory):
    """A finished study's folder and what its command printed."""
    workdir = tmp_path_factory.mktemp("study") / "run"
    ended = command(STUDY, f"--workdir={workdir}", *SMALL)
    assert ended.code == 0, ended
    return workdir, ended.out


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, command, tmp_path):
    workdir = tmp_path / "run"
    line = check_one_line(command(STUDY, f"--workdir={workdir}", *in_order(arguments)))
    assert BAD[arguments] in line
    assert not workdir.exists()


@pytest.mark.parametrize("study", ["progressive", "selective", "adapters", "correction", "preflight"])
def test_help_lists_the_flags_of_a_study(study, command):
    ended = command(f"experiments.{study}", "--help")
    assert (ended.code, ended.err) == (0, "")
    flags = set(re.findall(r"^  --(?:\[no\])?([a-z_]+):", ended.out, re.MULTILINE))
    of_study = {"workdir", "check", "tensorboard", "dry_run", "hardware", "distributed", "coordinator", "num_processes"}
    assert flags >= {"config"} | ({"topology", "json"} if study == "preflight" else of_study | {"require_accelerator"})
    assert "config.train" not in ended.out  # the fields of the config are told elsewhere


def test_config_files_that_are_broken(command, tmp_path):
    for name, text, words in [
        ("syntax.py", "def (", "invalid syntax"),
        ("name.py", "def get_config():\n    return undefined", "undefined"),
        ("empty.py", "", "get_config"),
    ]:
        (tmp_path / name).write_text(text)
        line = check_one_line(command(STUDY, f"--workdir={tmp_path / 'run'}", f"--config={tmp_path / name}"))
        assert words in line
    assert not (tmp_path / "run").exists()


def test_workdirs_that_cannot_be(command, study, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "config.json").write_text("{")
    for workdir, words in [
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "below", "Not a directory"),
        ("/proc/self", "name a folder that can be written"),  # not even root makes a file there
        (tmp_path / "corrupt", "is not JSON"),
        (study[0], "holds a study with config/train/steps=12, not 13"),
    ]:
        line = check_one_line(command(STUDY, f"--workdir={workdir}", *SMALL, "--config.train.steps=13"))
        assert words in line
        assert str(workdir) in line
    assert "--workdir=FOLDER is missing" in check_one_line(command(STUDY, *SMALL))
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "corrupt" / "config.json").read_text() == "{"


def test_a_finished_study_leaves_what_the_design_promises(study):
    workdir, printed = study
    names = {path.name for path in workdir.iterdir()}
    assert {"summary.json", "metrics.jsonl", "report.html", "config.json", "runs"} <= names
    summary = json.loads((workdir / "summary.json").read_text())
    assert [row["name"] for row in summary["rows"]] == ["baseline", "progressive_small"]
    assert "val CE" in printed
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {record["step"] for record in records if "val_ce" in record} == {6, 12}
    assert {record.get("phase") for record in records if record["variant"] == "progressive_small"} >= {0, 1}
    assert not list(workdir.rglob("checkpoints"))
    assert not list(workdir.rglob("*tmp*"))


def test_running_again_keeps_what_is_finished_and_adds_seeds(study, command, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(study[0], workdir)
    before = (workdir / "summary.json").read_text()
    ended = command(STUDY, f"--workdir={workdir}", *SMALL)
    assert ended.code == 0
    assert ended.out.count("finished before, kept") == 2
    assert (workdir / "summary.json").read_text() == before
    ended = command(STUDY, f"--workdir={workdir}", *SMALL, "--config.seeds=2")
    assert ended.code == 0
    assert ended.out.count("finished before, kept") == 2
    rows = json.loads((workdir / "summary.json").read_text())["rows"]
    assert [row["seeds"] for row in rows] == [[0, 1], [0, 1]]
    assert rows[0]["params_sha256"][0] != rows[0]["params_sha256"][1]
    assert rows[0]["params_sha256"][0] == json.loads(before)["rows"][0]["params_sha256"][0]


def test_a_bad_start_does_not_hinder_the_next_correct_one(command, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    fields = [*SMALL, "--config.variants=baseline"]
    for bad in ("--config.data.eval_batch_size=0", "--config.train.batch_size=100000"):
        check_one_line(command(STUDY, workdir, *fields, bad))
    assert command(STUDY, workdir, *fields).code == 0


def test_a_learning_rate_that_blows_up_is_one_line_and_exit_code_1(command, tmp_path):
    fields = [*SMALL, "--config.variants=baseline", "--config.train.optimizer.learning_rate=1e38"]
    ended = command(STUDY, f"--workdir={tmp_path / 'run'}", *fields)
    assert ended.code == 1
    assert ended.err.startswith("error: step ")
    assert ended.err.count("\n") == 1
    assert "Lower the learning rate" in ended.err


def test_evaluate_prints_one_json_line(study, command):
    workdir, _ = study
    result = json.loads((workdir / "runs" / "baseline" / "seed_0" / "result.json").read_text())
    flags = ("--variant=baseline", "--seq_len=512", "--stride=300", "--val_sequences=0")
    ended = command(EVALUATE, f"--workdir={workdir}", *flags)
    assert ended.code == 0, ended
    assert ended.out.count("\n") == 1
    found = json.loads(ended.out)
    assert found.keys() == {
        f"{kind}{name}" for kind in ("", "sliding_") for name in ("val_ce", "val_bpb", "tokens", "bytes")
    }
    assert found["tokens"] == found["sliding_tokens"] > result["tokens"]
    assert found["val_ce"] == pytest.approx(result["val_ce"], rel=0.2)


def test_evaluate_tells_bad_input_in_one_line(study, command, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(study[0], workdir)
    params = workdir / "runs" / "progressive_small" / "seed_0" / "params"
    largest = max(params.rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    baseline = (f"--workdir={workdir}", "--variant=baseline")
    for arguments, words in [
        ((), "--workdir=FOLDER"),
        ((f"--workdir={workdir}",), "--variant=NAME"),
        ((f"--workdir={tmp_path}", "--variant=baseline"), "not the folder of a study"),
        ((f"--workdir={workdir}", "--variant=baselin"), "nearest: baseline"),
        ((*baseline, "--seed=7"), "--seed=7"),
        ((*baseline, "--stride=-1"), "--stride=-1"),
        ((*baseline, "--seq_len=99999999"), "too few"),
        ((*baseline, "--data=/nowhere"), "not a folder"),
        ((*baseline, "more"), "unexpected argument"),
        ((f"--workdir={workdir}", "--variant=progressive_small"), str(params)),
    ]:
        assert words in check_one_line(command(EVALUATE, *arguments))


def test_a_folder_without_runs_takes_another_config(command, tmp_path):
    (tmp_path / "config.json").write_text('{"config": {"train": {"steps": 5}}, "data_fingerprint": "other"}')
    ended = command("experiments.progressive", *SMALL, "--config.variants=baseline", f"--workdir={tmp_path}")
    assert ended.code == 0, ended
    ended = command(
        "experiments.progressive",
        *SMALL,
        "--config.variants=baseline",
        "--config.train.steps=5",
        f"--workdir={tmp_path}",
    )
    check_one_line(ended)
    assert "holds a study with config/train/steps=12, not 5" in ended.err


def test_check_reads_the_flags_and_leaves_nothing(command, tmp_path):
    ended = command(STUDY, f"--workdir={tmp_path / 'run'}", *SMALL, "--config.data.path=/nowhere", "--check")
    assert (ended.code, ended.out, ended.err) == (0, "The flags and the config can be read.\n", "")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("message", "arguments", "expected"),
    [
        ("pattern 'x' matches nothing", ["--config.freeze.pattern=x"], "; given as --config.freeze.pattern=x"),
        ("dropout=1.0: too much", ["--config.model.dropout=1.0"], "; given as --config.model.dropout=1.0"),
        ("12 steps are too few", ["--config.train.steps=12"], ""),  # a number alone may be any number
        ("config.seeds=0: expected 1", ["--config.seeds=0"], ""),  # told already
        ("gpt2.model: cannot be read", ["--config.data.tokenizer=gpt2.model", "--config.seeds=3"], None),
    ],
)
def test_a_field_that_a_message_speaks_of_is_named(message, arguments, expected, monkeypatch):
    monkeypatch.setattr(cli.sys, "argv", ["study", *arguments])
    assert cli._given_as(message) == (f"; given as {arguments[0]}" if expected is None else expected)


def test_a_path_that_no_system_takes_is_told_with_its_flag(command, tmp_path):
    asked = [f"--config.search={'x' * 5000}", f"--workdir={tmp_path / 'w'}"]
    ended = command("experiments.frontier", "--config=experiments/configs/frontier.py:tiny", *asked)
    assert (ended.code, ended.err) == (2, f"error: --config.search={'x' * 60}...: File name too long\n")
    assert not (tmp_path / "w").exists()


def test_a_config_of_the_package_is_found_where_there_is_no_checkout(tmp_path):
    """As after `pip install freezejax`: in any folder, with or without --config."""
    (tmp_path / "experiments" / "configs").mkdir(parents=True)
    (tmp_path / "experiments" / "configs" / "selective.py").write_text("raise ValueError('mine')")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for config, code in (("progressive.py:tiny", 0), ("progressive.py:small", 2), ("selective.py:tiny", 2)):
        name = config.partition(".")[0]
        flags = [f"--config=experiments/configs/{config}", "--workdir=x", "--check"]
        asked = [sys.executable, "-m", f"experiments.{name}", *flags]
        ended = subprocess.run(asked, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == code, ended.stderr
