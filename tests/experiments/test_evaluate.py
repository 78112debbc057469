"""`experiments.evaluate` on runs and on artifacts: the scores of the study, and one line for what does not fit."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from freezejax import artifact, data, models
from freezejax.data import shards

STUDY, EVALUATE = "experiments.selective", "experiments.evaluate"
FIELDS = [
    *("--config.variants=baseline,selective_small", "--config.train.steps=4", "--config.train.seq_len=16"),
    "--config.sizes.small.num_layers=1",
    *("--config.train.batch_size=2", "--config.train.eval_every=0", "--config.data.val_sequences=3"),
    *("--config.train.compute_dtype=bfloat16", "--config.data.eval_batch_size=4"),
]
TEXTS = {"train": "A line of text that is there to be learned.\n" * 60, "val": "A line of text to score.\n" * 60}
AS_STUDIED = ("--compute_dtype=bfloat16", "--val_sequences=3", "--batch_size=4")
FIGURES = ("val_ce", "val_bpb", "tokens", "bytes")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Folder of shards without a tokenizer, and the tokenizer elsewhere."""
    folder, model = tmp_path_factory.mktemp("bare"), tmp_path_factory.mktemp("elsewhere") / "mine.model"
    tokenizer = data.train_bpe(TEXTS.values(), 300, model)
    for split, text in TEXTS.items():
        shards.write_split(folder, split, [tokenizer.encode(text)])
    return folder, model


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of text."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text("Another line to be scored, of another text.\n" * 60)
    return folder


@pytest.fixture(scope="module")
def study(bare, command, tmp_path_factory):
    """A finished study on those shards: its folder, and the result of each run."""
    workdir = tmp_path_factory.mktemp("study") / "run"
    fields = [f"--config.data.path={bare[0]}", f"--config.data.tokenizer={bare[1]}", *FIELDS]
    ended = command(STUDY, f"--workdir={workdir}", *fields)
    assert ended.code == 0, ended
    runs = {path.parents[1].name: json.loads(path.read_text()) for path in workdir.glob("runs/*/seed_0/result.json")}
    return workdir, runs


@pytest.fixture(scope="module")
def packed(study):
    """The artifact of the run whose gate and up are maps."""
    return study[0] / "runs" / "selective_small" / "seed_0" / "model.fjax"


@pytest.fixture
def score(command):
    def run(*arguments):
        ended = command(EVALUATE, *arguments)
        assert ended.code == 0, ended
        assert ended.out.count("\n") == 1
        return json.loads(ended.out)

    return run


@pytest.fixture
def refused(command):
    def run(*arguments):
        ended = command(EVALUATE, *arguments)
        assert ended.code == 2, ended
        assert ended.err.startswith("error: ")
        assert ended.err.count("\n") == 1
        assert not ended.out
        return ended.err

    return run


def write(path, tokenizer, notes):
    """An artifact of an untrained model of 300 tokens."""
    config = {"family": "geglu", "vocab_size": 300, "num_layers": 1, "model_dim": 32, "num_heads": 2}
    shapes = jax.eval_shape(models.build(**config).init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), shapes)
    reference = None if tokenizer is None else {"name": tokenizer.name, "sha256": tokenizer.fingerprint}
    artifact.save(path, params, model=config, compressor="none", tokenizer=reference, notes=notes)
    return path


def test_a_study_on_shards_with_its_tokenizer_named_can_be_scored(bare, study, score):
    workdir, runs = study
    result = runs["baseline"]
    assert (result["tokenizer"], result["model"]["vocab_size"]) == ("mine", 300)
    for more in ((), (f"--data={bare[0]}",)):
        found = score(f"--workdir={workdir}", "--variant=baseline", *more)
        assert found == {name: result[name] for name in FIGURES}


@pytest.mark.parametrize("variant", ["baseline", "selective_small"])
def test_a_run_and_its_packed_file_score_what_the_study_recorded_to_the_last_bit(variant, study, score):
    workdir, runs = study
    result, this = runs[variant], (f"--workdir={workdir}", f"--variant={variant}")
    packed = {"val_ce": result["packed_ce"], "val_bpb": result["packed_bpb"]}
    assert score(*this) == {name: result[name] for name in FIGURES}
    assert score(*this, "--packed") == {**{name: result[name] for name in FIGURES}, **packed}


def test_counterparts_each_setting_of_the_study_counts(study, score):
    workdir, runs = study
    this, result = (f"--workdir={workdir}", "--variant=baseline"), runs["baseline"]
    assert score(*this, "--compute_dtype=float32")["val_ce"] != result["val_ce"]
    assert score(*this, "--val_sequences=0")["tokens"] > result["tokens"]
    assert score(*this, "--seq_len=8")["val_ce"] != result["val_ce"]


def test_shards_and_texts_by_themselves_are_scored(bare, study, score, tmp_path):
    this = (f"--workdir={study[0]}", "--variant=baseline")
    everything = score(*this, "--val_sequences=0")
    only_val = tmp_path / "val"
    only_val.mkdir()
    for name in ("fineweb_val_000000.bin", "any name.bin"):
        shutil.copyfile(bare[0] / "fineweb_val_000000.bin", only_val / name)
    for place in (only_val, only_val / "fineweb_val_000000.bin", only_val / "any name.bin"):
        assert score(*this, f"--data={place}") == everything
    assert score(*this, f"--data={only_val}", "--val_sequences=3")["tokens"] < everything["tokens"]
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("Another line to be scored, of another text.\n" * 60)
    assert score(*this, f"--data={texts / 'a.txt'}") == score(*this, f"--data={texts}")
    (texts / "b.txt").write_text("And yet another one.\n" * 60)
    assert score(*this, f"--data={texts / 'a.txt'}")["tokens"] < score(*this, f"--data={texts}")["tokens"]


def test_a_study_still_needs_shards_to_train_on(bare, command, tmp_path):
    shutil.copyfile(bare[0] / "fineweb_val_000000.bin", tmp_path / "fineweb_val_000000.bin")
    for place, words in [(tmp_path, "no fineweb_train_*.bin"), (tmp_path / "fineweb_val_000000.bin", "not a folder")]:
        fields = [f"--config.data.path={place}", f"--config.data.tokenizer={bare[1]}", *FIELDS]
        ended = command(STUDY, f"--workdir={tmp_path / 'run'}", *fields)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert words in ended.err


def test_a_text_that_has_changed_is_not_scored_as_the_studys_own(study, refused, tmp_path):
    (tmp_path / "runs").symlink_to(study[0] / "runs")
    (tmp_path / "tokenizer.model").symlink_to(study[0] / "tokenizer.model")
    config = json.loads((study[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "data_fingerprint": "0" * 64}))
    assert "the text of the study has changed since" in refused(f"--workdir={tmp_path}", "--variant=baseline")


def test_counterpart_the_same_shards_read_as_bytes_are_refused(bare, command, tmp_path):
    fields = [f"--config.data.path={bare[0]}", "--config.data.tokenizer=bytes", *FIELDS]
    ended = command(STUDY, f"--workdir={tmp_path / 'run'}", *fields)
    assert ended.code == 2
    assert "is not in the vocabulary of 256" in ended.err


@pytest.mark.parametrize("variant", ["baseline", "selective_small"])
def test_an_artifact_scores_what_its_run_recorded(variant, bare, study, score):
    workdir, runs = study
    path, result = workdir / "runs" / variant / "seed_0" / "model.fjax", runs[variant]
    found = score(f"--artifact={path}", f"--data={bare[0]}", f"--tokenizer={bare[1]}", *AS_STUDIED)
    assert (found["tokens"], found["bytes"]) == (result["tokens"], result["bytes"])
    assert (found["val_ce"], found["val_bpb"]) == (result["packed_ce"], result["packed_bpb"])
    assert found["val_ce"] != result["val_ce"]  # counterpart: the weights before they were packed


def test_an_artifact_scores_text_and_sliding_windows(bare, study, packed, text, score):
    options = (f"--data={text}", "--seq_len=32", "--stride=5")
    found = score(f"--artifact={packed}", f"--tokenizer={bare[1]}", *options)
    of_run = score(f"--workdir={study[0]}", "--variant=selective_small", *options)
    assert found.keys() == of_run.keys()
    assert found["tokens"] == found["sliding_tokens"] == of_run["tokens"] > 32
    assert found["bytes"] == of_run["bytes"]
    for name in ("val_ce", "sliding_val_ce"):
        assert found[name] == pytest.approx(of_run[name], rel=0.05)
        assert found[name] != of_run[name]
    assert found["sliding_val_ce"] != found["val_ce"]


def test_windows_are_as_long_as_the_notes_say(bare, text, tmp_path, score, refused):
    tokenizer = data.SentencePieceTokenizer(bare[1])
    options = (f"--data={text}", f"--tokenizer={bare[1]}")
    short = write(tmp_path / "short.fjax", tokenizer, {"seq_len": 8})
    assert score(f"--artifact={short}", *options) == score(f"--artifact={short}", *options, "--seq_len=8")
    for i, notes in enumerate((None, [8], {"seq_len": "8"}, {"seq_len": 0})):
        path = write(tmp_path / f"{i}.fjax", tokenizer, notes)
        line = refused(f"--artifact={path}", *options)
        assert f"--artifact={path} does not say how long its sequences were; give --seq_len=N, or save it with" in line
    assert score(f"--artifact={path}", *options, "--seq_len=8") == score(f"--artifact={short}", *options)


def test_flags_that_do_not_go_together_are_one_line(bare, study, packed, refused):
    both = "--artifact=FILE and --workdir=FOLDER --variant=NAME are two things"
    for arguments, words in [
        ((f"--artifact={packed}", f"--workdir={study[0]}"), both),
        ((f"--artifact={packed}", "--variant=baseline"), both),
        ((), "(or --artifact=FILE)"),
        ((f"--artifact={packed}", "--packed"), "--packed is for --workdir=FOLDER"),
        ((f"--workdir={study[0]}", "--variant=baseline", f"--tokenizer={bare[1]}"), "--tokenizer=FILE.model is for"),
        ((f"--artifact={packed}", "--seq_len=0"), "seq_len"),
        ((f"--artifact={packed}", "--batch_size=0"), "batch_size"),
        ((f"--artifact={packed}", f"--data={bare[0]}", f"--tokenizer={bare[1]}", "--stride=17"), "stride=17"),
        ((f"--artifact={packed}", f"--data={bare[0]}", f"--tokenizer={bare[1]}", "--seq_len=9999"), "too few"),
    ]:
        assert words in refused(*arguments)


def test_files_that_are_missing_or_damaged_are_one_line(bare, packed, tmp_path, refused):
    missing, damaged = tmp_path / "none.fjax", tmp_path / "damaged.fjax"
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    options = (f"--data={bare[0]}", f"--tokenizer={bare[1]}")
    assert f"{missing}: there is no such file" in refused(f"--artifact={missing}", *options)
    assert f"{damaged}: damaged: its content does not match its SHA-256" in refused(f"--artifact={damaged}", *options)
    assert f"{bare[1]}: not a freezejax artifact" in refused(f"--artifact={bare[1]}", *options)
    assert "not a folder" in refused(f"--artifact={packed}", f"--data={missing}", options[1])
    assert "cannot read the tokenizer" in refused(f"--artifact={packed}", options[0], "--tokenizer=none.model")


def test_tokens_that_are_not_the_models_are_one_line(bare, packed, text, tmp_path, refused):
    other = data.train_bpe([*TEXTS.values(), "other words and yet others " * 9], 299, tmp_path / "299.model").path
    large = data.train_bpe(TEXTS.values(), 310, tmp_path / "310.model").path
    name = "not those of the model's tokenizer, mine; give it with --tokenizer=FILE.model"
    for options, words in [
        ((f"--data={text}",), f"tokens of bytes are {name}"),
        ((), f"tokens of bytes are {name}"),  # the embedded text
        ((f"--data={text}", f"--tokenizer={other}"), f"tokens of 299 are {name}"),
        ((f"--data={text}", f"--tokenizer={large}"), "310 has 310 tokens, the model 300"),
        ((f"--data={bare[0]}",), "is not in the vocabulary of 256"),
    ]:
        assert words in refused(f"--artifact={packed}", *options)


def test_the_command_of_the_artifact_page_scores_a_file_without_notes_as_its_own(text, tmp_path, score):
    page = (Path(__file__).parents[2] / "docs" / "artifact.md").read_text(encoding="utf-8")
    (line,) = [line for line in page.splitlines() if "python -m experiments.evaluate" in line]
    path = write(tmp_path / "model.fjax", None, None)
    line = line.replace("--artifact=model.fjax", f"--artifact={path}").replace("--data=FOLDER", f"--data={text}")
    assert score(*line.split("experiments.evaluate ")[1].split())["tokens"] > 100


def test_several_artifacts_are_scored_as_one_model(study, bare, packed, score, refused):
    other = study[0] / "runs" / "baseline" / "seed_0" / "model.fjax"
    data_of = (f"--data={bare[0]}", f"--tokenizer={bare[1]}")
    found = {paths: score(f"--artifact={paths}", *data_of) for paths in (f"{packed}", f"{packed},{packed}")}
    alone, twice = found.values()
    assert twice == {**alone, **{name: pytest.approx(alone[name], rel=1e-5) for name in FIGURES[:2]}}
    pair = f"--artifact={packed},{other}"
    logits, probabilities = (score(pair, *data_of, f"--combine={c}") for c in ("logits", "probabilities"))
    assert score(pair, *data_of) == logits
    assert len({figures["val_ce"] for figures in (logits, probabilities, alone)}) == 3
    size = packed.stat().st_size + other.stat().st_size
    assert f"{size:,} bytes together, 1 over" in refused(pair, *data_of, f"--budget={size - 1}")
    assert "are for several files" in refused(f"--artifact={packed}", *data_of, "--combine=logits")


def test_an_artifact_that_names_no_tokenizer_takes_any_that_fits(text, tmp_path, score):
    path = write(tmp_path / "x.fjax", None, {"seq_len": 16})
    found = score(f"--artifact={path}", f"--data={text}")
    assert found["tokens"] == found["bytes"] > 100  # bytes
