"""What a run of the selective study leaves: the packed file, its score, and both axes of seeds on disk."""

import hashlib
import json

import pytest

from freezejax import artifact

STUDY = "experiments.selective"
FIELDS = [
    "--config.variants=baseline,selective_small,full_freeze_lora",
    "--config.sizes.small.num_layers=1",
    *("--config.train.steps=12", "--config.train.seq_len=16", "--config.train.batch_size=2", "--config.base_seeds=2"),
    *("--config.data.val_sequences=16", "--config.train.eval_every=0", "--config.train.checkpoint_every=4"),
]
RUNS = {
    *("baseline/seed_0", "selective_small/seed_0", "selective_small/seed_0_base_1"),
    *("full_freeze_lora/seed_0", "full_freeze_lora/seed_0_base_1"),
}


def results(workdir):
    found = {path.parent: json.loads(path.read_text()) for path in workdir.glob("runs/*/*/result.json")}
    return {str(path.relative_to(workdir / "runs")): result for path, result in found.items()}


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    ended = command(STUDY, f"--workdir={workdir}", *FIELDS)
    assert ended.code == 0, ended
    return workdir


def test_both_axes_of_seeds_are_on_disk(whole):
    found = results(whole)
    assert found.keys() == RUNS
    for folder, result in found.items():
        assert result["base_seed"] == ("base_1" in folder)
    assert len({result["params_sha256"] for result in found.values()}) == len(RUNS)
    rows = {row["name"]: row for row in json.loads((whole / "summary.json").read_text())["rows"]}
    assert rows["baseline"]["base_seeds"] == [0]
    assert rows["selective_small"]["base_seeds"] == [0, 1]
    assert rows["selective_small"]["base_seed_sd"] > 0
    assert rows["selective_small"]["seeded_params"] > 0 == rows["selective_small"]["frozen_params"]


def test_every_run_is_packed_and_the_file_is_what_was_scored(whole):
    for folder, result in results(whole).items():
        path = whole / "runs" / folder / "model.fjax"
        assert result["artifact_bytes"] == path.stat().st_size
        assert result["artifact_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        roles = {"role=adapter": "int8", "role=kernel": "int6", "role=embedding": "int6"}
        assert result["codec"] == [*map(list, roles.items()), [".*", "int6"]]
        assert result["compressor"] == "brotli"
        assert result["packed_ce"] == pytest.approx(result["val_ce"], rel=0.1)
        assert result["packed_ce"] != result["val_ce"]
        assert result["packed_bpb"] / result["packed_ce"] == pytest.approx(result["val_bpb"] / result["val_ce"])
        _, _, metadata = artifact.load(path)
        assert result["tokenizer_sha256"] in json.dumps(metadata, default=str)


def test_the_predicted_bytes_are_those_of_the_file_without_compression(whole, command, tmp_path):
    fields = [*FIELDS, "--config.variants=selective_small", "--config.artifact.compressor=none"]
    ended = command(STUDY, f"--workdir={tmp_path / 'run'}", *fields)
    assert ended.code == 0, ended
    plain, packed = results(tmp_path / "run"), results(whole)
    for folder, result in plain.items():
        assert result["stored_bytes_predicted"] == result["artifact_bytes"] == packed[folder]["stored_bytes_predicted"]
        assert result["params_sha256"] == packed[folder]["params_sha256"]
        assert result["packed_ce"] == packed[folder]["packed_ce"]


def test_killed_in_a_run_of_the_second_base_seed_it_ends_the_same(whole, command, tmp_path):
    workdir = tmp_path / "run"
    checkpoints = workdir / "runs" / "selective_small" / "seed_0_base_1" / "checkpoints"
    ended = command(STUDY, f"--workdir={workdir}", *FIELDS, stop_when=lambda: any(checkpoints.glob("[0-9]*")))
    assert ended.code < 0, ended
    assert results(workdir).keys() < RUNS
    ended = command(STUDY, f"--workdir={workdir}", *FIELDS)
    assert ended.code == 0, ended
    assert ended.out.count("finished before, kept") >= 3
    for folder, result in results(workdir).items():
        expected = results(whole)[folder]
        of_its_own = dict.fromkeys(
            ("step_ms_median", "seconds", "step_seconds", "metrics_sha256", "digest")
        )  # times, and what tells of them
        assert {**result, **of_its_own} == {**expected, **of_its_own}


def test_base_seeds_may_be_added_to_a_folder(whole, command, tmp_path):
    workdir, few = tmp_path / "run", [*FIELDS, "--config.variants=selective_small"]
    for count, runs in ((1, 2), (2, 3)):
        ended = command(STUDY, f"--workdir={workdir}", *few, f"--config.base_seeds={count}")
        assert ended.code == 0, ended
        assert len(results(workdir)) == runs
    ended = command(STUDY, f"--workdir={workdir}", *few, "--config.artifact.codec=int8")
    assert ended.code == 2
    assert "holds a study with config/artifact/codec='int6', not 'int8'" in ended.err
