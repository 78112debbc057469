"""`--tensorboard` writes every scalar of a run, and those of a resumed run once."""

import json
import signal

import pytest

STUDY = "experiments.progressive"
FIELDS = [
    *("--config.variants=baseline", "--config.train.steps=200", "--config.train.seq_len=16"),
    "--config.sizes.small.num_layers=1",
    *("--config.train.batch_size=2", "--config.train.log_every=1", "--config.train.eval_every=20"),
    *("--config.train.checkpoint_every=20", "--config.data.val_sequences=16"),
]


def scalars(folder):
    """tag -> {step: value}, and the steps in the order written, over the event files of a folder."""
    from tensorboardX.proto.event_pb2 import Event

    found, order = {}, []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):  # a TFRecord: length (8 bytes), its checksum (4), the event, its checksum (4)
            length = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += length + 16
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
                order.append((value.tag, event.step))
    return found, order


def assert_as_in_the_metrics(workdir):
    run = workdir / "runs" / "baseline" / "seed_0"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = {}
    for record in (record for record in records if "rules" not in record):  # with which a phase begins: no numbers
        for name in record.keys() - {"step"}:
            expected.setdefault(name, {})[record["step"]] = record[name]
    found, order = scalars(workdir / "tensorboard" / "baseline" / "seed_0")
    assert found.keys() == expected.keys() >= {"loss", "learning_rate", "val_ce", "val_bpb"}
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-6)
    return order


def test_event_files_hold_the_scalars_of_the_metrics(command, tmp_path):
    workdir = tmp_path / "run"
    ended = command(STUDY, f"--workdir={workdir}", "--tensorboard", *FIELDS)
    assert ended.code == 0, ended
    order = assert_as_in_the_metrics(workdir)
    assert len(set(order)) == len(order)


def test_after_a_stop_and_a_resume_they_still_do(command, tmp_path):
    workdir = tmp_path / "run"
    metrics = workdir / "runs" / "baseline" / "seed_0" / "metrics.jsonl"
    arguments = (f"--workdir={workdir}", "--tensorboard", *FIELDS)

    def halfway():
        return metrics.exists() and metrics.read_text().count("\n") > 60

    stopped = command(STUDY, *arguments, stop_when=halfway, by=signal.SIGTERM)
    assert stopped.code == 143, stopped
    ended = command(STUDY, *arguments)
    assert ended.code == 0, ended
    assert "resumed after step" in ended.out
    assert len(list((workdir / "tensorboard" / "baseline" / "seed_0").glob("events*"))) == 2
    order = assert_as_in_the_metrics(workdir)
    assert len(set(order)) == len(order)


def test_counterpart_without_the_flag_there_are_none(command, tmp_path):
    workdir = tmp_path / "run"
    assert command(STUDY, f"--workdir={workdir}", *FIELDS).code == 0
    assert not (workdir / "tensorboard").exists()
