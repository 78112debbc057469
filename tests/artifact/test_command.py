"""`python -m freezejax.artifact`: bytes that add up, one line where something is wrong, and the exit codes."""

import re
import subprocess
import sys

import numpy as np
import pytest

from freezejax import artifact
from freezejax.artifact.__main__ import main


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("command") / "x.fjax"
    config, params = trained("maps")
    artifact.save(path, params, model=config, codec="int6", compressor="zlib")
    return path


def test_inspect_says_where_every_byte_goes(file, capsys):
    assert main(["inspect", str(file)]) == 0
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()[1:]
    total = table.index(next(line for line in table if line.startswith("total = file")))
    counts = [re.search(r" ([\d,]+)(  +\d+\.\d\d)?(  +[\d.inf]+)?$", line) for line in table[:total]]
    found = sum(int(count[1].replace(",", "")) for count in counts if count and "below" not in count.string)
    assert found == file.stat().st_size == int(table[total].split()[-1].replace(",", ""))
    maps = [line for line in table[total + 1 :] if line]
    assert len(maps) == 4
    assert all(line.split()[-3:] == ["rademacher", "0", "0.00"] for line in maps)


def test_verify_says_ok(file, capsys):
    assert main(["verify", str(file)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"ok: {file}: {file.stat().st_size:,} bytes")
    assert out.count("\n") == 1


def test_verify_refuses_logits_that_are_not_finite(trained, tmp_path, capsys):
    config, params = trained("geglu")
    params = {**params, "tok_emb": {"embedding": np.zeros((70, 64), np.float32)}}
    config = {**config, "norm_eps": 1e-320}  # the norm of a zero vector: 0 * rsqrt(eps), in float32
    artifact.save(tmp_path / "x.fjax", params, model=config, compressor="none")
    assert main(["verify", str(tmp_path / "x.fjax")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'x.fjax'}: the model's logits are not finite\n"


@pytest.mark.parametrize(("limit", "code"), [("100000", 1), ("16000000", 0)])
def test_budget_counts_code_and_model(file, limit, code, tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    (tmp_path / "train.py").write_text("é = 1\n" * 10_000, encoding="utf-8")  # 7 bytes a line
    (tmp_path / "sub" / "b.py").write_text("x" * 500)
    (tmp_path / "notes.txt").write_text("not code")
    paths = f"{tmp_path},{tmp_path / 'train.py'}"  # named twice, counted once
    assert main(["inspect", str(file), f"--budget={limit}", f"--code={paths}"]) == code
    *_, code_line, model_line, total_line = capsys.readouterr().out.splitlines()
    assert code_line.split() == ["code", "70,500", "bytes", "in", "2", "files"]
    assert model_line.split()[1] == f"{file.stat().st_size:,}"
    assert total_line.split()[1] == f"{70_500 + file.stat().st_size:,}"
    assert ("fits" in total_line) == (code == 0)


def test_the_package_is_the_default_code(file, capsys):
    assert main(["inspect", str(file), "--budget=16000000"]) == 0
    assert int(capsys.readouterr().out.splitlines()[-3].split()[1].replace(",", "")) > 100_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "FILE", "--budget=16MB"], "argument --budget: '16MB' is no number of bytes"),
        (["inspect", "FILE", "--budget=1", "--code=nowhere"], "--code=nowhere: no such file, or a folder without .py"),
        (["inspect"], "the following arguments are required: FILE"),
        (["show", "FILE"], "invalid choice: 'show'"),
        (["verify", "nowhere.fjax"], "nowhere.fjax: there is no such file"),
    ],
)
def test_bad_usage_is_one_line(arguments, message, file, capsys):
    assert main([str(file) if argument == "FILE" else argument for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_damaged_file_in_a_real_process(file, tmp_path):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    damaged = tmp_path / "damaged.fjax"
    damaged.write_bytes(content)
    command = [sys.executable, "-m", "freezejax.artifact", "verify", str(damaged)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {damaged}: damaged: its content does not match its SHA-256\n"
