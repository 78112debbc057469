"""`experiments.evaluate` on token shards that have no tokenizer beside them."""

import json

import pytest

from freezejax import data
from freezejax.data import shards

STUDY, EVALUATE = "experiments.progressive", "experiments.evaluate"
FIELDS = [
    *("--config.variants=baseline", "--config.train.steps=4", "--config.train.seq_len=16"),
    *("--config.train.batch_size=2", "--config.train.eval_every=0", "--config.data.val_sequences=0"),
]
TEXTS = {"train": "A line of text that is there to be learned.\n" * 60, "val": "A line of text to score.\n" * 30}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Folder of shards without a tokenizer, and the tokenizer elsewhere."""
    folder, model = tmp_path_factory.mktemp("bare"), tmp_path_factory.mktemp("elsewhere") / "mine.model"
    tokenizer = data.train_bpe(TEXTS.values(), 300, model)
    for split, text in TEXTS.items():
        shards.write_split(folder, split, [tokenizer.encode(text)])
    return folder, model


def test_a_study_on_shards_with_its_tokenizer_named_can_be_scored(bare, command, tmp_path):
    folder, model = bare
    workdir = tmp_path / "run"
    fields = [f"--config.data.path={folder}", f"--config.data.tokenizer={model}", *FIELDS]
    ended = command(STUDY, f"--workdir={workdir}", *fields)
    assert ended.code == 0, ended
    result = json.loads((workdir / "runs" / "baseline" / "seed_0" / "result.json").read_text())
    assert (result["tokenizer"], result["model"]["vocab_size"]) == ("mine", 300)
    for more in ((), (f"--data={folder}",)):
        ended = command(EVALUATE, f"--workdir={workdir}", "--variant=baseline", *more)
        assert ended.code == 0, ended
        found = json.loads(ended.out)
        assert (found["tokens"], found["bytes"]) == (result["tokens"], result["bytes"])
        assert found["val_ce"] == pytest.approx(result["val_ce"], rel=1e-5)


def test_counterpart_the_same_shards_read_as_bytes_are_refused(bare, command, tmp_path):
    fields = [f"--config.data.path={bare[0]}", "--config.data.tokenizer=bytes", *FIELDS]
    ended = command(STUDY, f"--workdir={tmp_path / 'run'}", *fields)
    assert ended.code == 2
    assert "is not in the vocabulary of 256" in ended.err
