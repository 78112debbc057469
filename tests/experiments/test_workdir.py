"""Damage to a finished run's folder: one line that names the file, or the run is made again; never a wrong figure."""

import json
import shutil

import pytest

from experiments.engine import lock, workdir
from freezejax.errors import UserError
from tests.experiments.test_cli import SMALL, STUDY, check_one_line

FIELDS = [*SMALL, "--config.variants=baseline"]
RUN = "runs/baseline/seed_0"
GARBAGE = {
    "empty": b"",
    "binary": b"\xff\x00\x9f" * 50,
    "text": b"hello\n",
    "half": b'{"a": 1, "b',
    "deep": b"[" * 10**5,
}


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    ended = command(STUDY, f"--workdir={folder}", *FIELDS)
    assert ended.code == 0, ended
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    yield tmp_path / "run"
    lock.held.close()


def write(content):
    def damage(path):
        path.write_bytes(content)

    return damage


def delete(path):
    path.unlink()


def folder(path):
    path.unlink()
    path.mkdir()


def field(**values):
    """The file written again as JSON with some fields changed; the digest is left as it was."""

    def damage(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return damage


def sealed(**values):
    """The same with a digest that fits, as another version of the program might write it."""

    def damage(path):
        found = {**json.loads(path.read_text()), **values}
        del found["digest"]
        path.write_text(json.dumps({**found, "digest": workdir._digest(found)}))

    return damage


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lines(change):
    def damage(path):
        path.write_text("".join(line + "\n" for line in change(path.read_text().splitlines())))

    return damage


RESULT, METRICS, CONFIG = f"{RUN}/result.json", f"{RUN}/metrics.jsonl", "config.json"
# (file, name of the damage): what is done to it. Each is told in one line, which names the file.
TOLD = {
    **{(RESULT, name): write(content) for name, content in GARBAGE.items()},
    (RESULT, "{}"): write(b"{}"),
    (RESULT, "[]"): write(b"[]"),
    (RESULT, "null"): write(b"null"),
    (RESULT, "a folder"): folder,
    (RESULT, "a bit flipped"): flip,
    (RESULT, "val_ce a string"): field(val_ce="4.8"),
    (RESULT, "val_ce NaN"): field(val_ce=float("nan")),
    (RESULT, "val_ce another number"): field(val_ce=1.0),
    (RESULT, "no digest"): field(digest=None),
    (RESULT, "sealed, val_ce a string"): sealed(val_ce="4.8"),
    (RESULT, "sealed, val_ce missing"): sealed(val_ce=None),
    (RESULT, "sealed, val_ce infinite"): sealed(val_ce=float("inf")),
    (RESULT, "sealed, steps negative"): sealed(steps=-1),
    (RESULT, "sealed, seed a bool"): sealed(seed=True),
    (METRICS, "deleted"): delete,
    (METRICS, "a folder"): folder,
    (METRICS, "empty"): write(b""),
    (METRICS, "half a last line"): lambda path: path.write_bytes(path.read_bytes()[:-9]),
    (METRICS, "a list"): lines(lambda found: [*found, "[1]"]),
    (METRICS, "garbage line"): lines(lambda found: [found[0], "garbage", *found[1:]]),
    (METRICS, "a loss changed"): lines(lambda found: [found[0], found[1].replace('"loss": ', '"loss": 1'), *found[2:]]),
    **{(CONFIG, name): write(content) for name, content in GARBAGE.items()},
    (CONFIG, "[]"): write(b"[]"),
    (CONFIG, "{}"): write(b"{}"),
    (CONFIG, "a config of []"): write(b'{"config": [], "data_fingerprint": "x"}'),
    (CONFIG, "deleted"): delete,
    ("summary.json", "a folder"): folder,
    ("report.html", "a folder"): folder,
}


def read(folder):
    """As a study does at its start."""
    workdir.open_for_writing(folder, ("val_ce", "val_bpb", "packed_ce", "packed_bpb"))
    workdir.read_config(folder)


@pytest.mark.parametrize(("file", "damage"), TOLD, ids=lambda part: str(part).rsplit("/", 1)[-1])
def test_damage_is_told_in_one_line_that_names_the_file(file, damage, copy):
    TOLD[file, damage](copy / file)
    with pytest.raises(UserError) as told:
        read(copy)
    assert str(copy / file) in str(told.value)
    assert "\n" not in str(told.value)
    assert any(word in str(told.value) for word in ("delete", "put it back", "move it away"))


def test_counterpart_a_whole_folder_is_read(copy):
    read(copy)
    assert workdir.read_config(copy)["config"]["train"]["steps"] == 12
    result = workdir.read_result(copy / RUN)
    assert [record["step"] for record in workdir.read_metrics(copy / RUN, result)][-1] == 12


# What the command says through all of its layers, and what its own advice leads to.
@pytest.mark.parametrize("file", [RESULT, METRICS, CONFIG])
def test_the_command_ends_in_that_line_and_leaves_the_folder_as_it_is(file, copy, command):
    (copy / file).write_text("[]")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    line = check_one_line(command(STUDY, f"--workdir={copy}", *FIELDS))
    assert str(copy / file) in line
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_as_advised_the_file_is_deleted_and_the_run_made_again_to_the_same_bits(finished, copy, command):
    expected = json.loads((copy / RESULT).read_text())
    for path, damage in (("summary.json", b"\xff"), (f"{RUN}/model.fjax", b""), (METRICS, b"garbage\n")):
        (copy / path).write_bytes(damage)
    for path in (RESULT, METRICS):  # as the line about metrics.jsonl says
        (copy / path).unlink()
    ended = command(STUDY, f"--workdir={copy}", *FIELDS)
    assert ended.code == 0, ended
    found = json.loads((copy / RESULT).read_text())
    for name in ("val_ce", "packed_ce", "params_sha256", "artifact_sha256"):
        assert found[name] == expected[name]
    assert json.loads((copy / "summary.json").read_text())["rows"][0]["val_ce_mean"] == expected["val_ce"]
