"""A `SHA256SUMS` beside the data: one changed bit, one missing file, is one line of error."""

import shutil
import subprocess

import numpy as np
import pytest

from freezejax import data
from freezejax.data import checksums, shards
from freezejax.errors import UserError

TEXT = "A line of text that is there to be learned.\n"


@pytest.fixture
def folder(tmp_path):
    """Shards of bytes, their list, and a file that is none of the data's."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for split in ("train", "val"):
        shards.write_shard(folder / f"fineweb_{split}_000000.bin", np.arange(200))
    (folder / "README.md").write_text("mine")
    checksums.write(folder)
    return folder


def load(folder, tmp_path, tokenizer="bytes"):
    return data.load(str(folder), tokenizer=tokenizer, cache_dir=str(tmp_path / "cache"))


def flip_a_bit(path, at=-2):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_inside_the_vocabulary_is_told(folder, tmp_path):
    load(folder, tmp_path)
    flip_a_bit(folder / "fineweb_val_000000.bin")
    with pytest.raises(UserError, match=r"fineweb_val_000000\.bin: does not match its SHA-256 in SHA256SUMS") as error:
        load(folder, tmp_path)
    assert "\n" not in str(error.value)


def test_without_the_list_the_same_bit_is_another_corpus(folder, tmp_path):
    before = load(folder, tmp_path)
    flip_a_bit(folder / "fineweb_val_000000.bin")
    (folder / checksums.NAME).unlink()
    after = load(folder, tmp_path)
    assert after.val[-1] == 198
    assert before.fingerprint != after.fingerprint


def test_a_missing_file_is_told(folder, tmp_path):
    (folder / "fineweb_train_000000.bin").rename(folder / "fineweb_train_000001.bin")
    with pytest.raises(UserError, match=r"000000\.bin: is listed in SHA256SUMS, but cannot be read: No such file"):
        load(folder, tmp_path)


def test_files_that_are_not_listed_or_not_data_are_let_be(folder, tmp_path):
    before = load(folder, tmp_path)
    assert "README" not in (folder / checksums.NAME).read_text()
    with (folder / checksums.NAME).open("a") as listing:
        listing.write(f"{'0' * 64}  README.md\n")
    shards.write_shard(folder / "fineweb_train_000001.bin", np.arange(3))
    assert len(load(folder, tmp_path).train) == len(before.train) + 3


@pytest.mark.parametrize("form", ["{} *{}\n", "{}  ./{}\n", "{}  {}\r\n", "{}  {}"])
def test_other_forms_that_sha256sum_reads(form, folder, tmp_path):
    listing, path = folder / checksums.NAME, folder / "fineweb_val_000000.bin"
    digest = next(line.split()[0] for line in listing.read_text().splitlines() if line.endswith(path.name))
    listing.write_bytes(form.format(digest.upper(), path.name).encode())
    load(folder, tmp_path)
    flip_a_bit(path)
    with pytest.raises(UserError, match="does not match"):
        load(folder, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abc  fineweb_val_000000.bin\n", "SHA256SUMS: line 1 is not 'SHA-256  NAME'"),
        (b"\n" + b"0" * 64 + b"fineweb_val_000000.bin\n", "SHA256SUMS: line 2 is not"),
        (b"0" * 64 + b"  a\0.bin", "SHA256SUMS: line 1 is not"),
        (b"0" * 64 + b"  \xff.bin", "SHA256SUMS: cannot be read as text"),
        (b"0" * 64 + b"  ../a.bin\n", "a.bin: is listed in SHA256SUMS, but cannot be read"),
    ],
)
def test_a_list_that_is_none_is_told(content, message, folder, tmp_path):
    (folder / checksums.NAME).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load(folder, tmp_path)
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)


def test_text_is_checked_too(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT * 99)
    checksums.write(folder)
    load(folder, tmp_path)
    flip_a_bit(folder / "a.txt", at=10)
    with pytest.raises(UserError, match=r"a\.txt: does not match"):
        load(folder, tmp_path)


def test_the_cache_lists_its_own_files_and_checks_them(tmp_path, monkeypatch):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT * 99)
    before = load(folder, tmp_path, "bpe:300")
    (cached,) = (tmp_path / "cache").iterdir()
    if (tool := shutil.which("sha256sum")) is not None:
        found = subprocess.run([tool, "-c", checksums.NAME], cwd=cached, capture_output=True, text=True, check=True)
        assert sorted(found.stdout.splitlines()) == [
            *("bpe300.model: OK", "fineweb_train_000000.bin: OK", "fineweb_val_000000.bin: OK")
        ]
    flip_a_bit(cached / "fineweb_train_000000.bin")
    with pytest.raises(UserError, match=f"does not match .*; delete {cached}, it is made again"):
        load(folder, tmp_path, "bpe:300")
    with monkeypatch.context() as patch:
        patch.setattr(checksums, "verify", lambda *_, **__: None)
        assert load(folder, tmp_path, "bpe:300").fingerprint != before.fingerprint  # silently
    shutil.rmtree(cached)
    assert load(folder, tmp_path, "bpe:300").fingerprint == before.fingerprint


def test_a_folder_in_place_of_the_list_is_told(folder, tmp_path):
    (folder / checksums.NAME).unlink()
    (folder / checksums.NAME).mkdir()
    with pytest.raises(UserError, match="cannot be read as text"):
        load(folder, tmp_path)
