"""Shards: what is written is read, and what is damaged is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezejax.data import shards
from freezejax.errors import UserError

NARROW, WIDE = 65_536, 2**31  # vocabularies of uint16 and uint32
tokens_arrays = st.lists(st.integers(0, 65_535), max_size=50).map(lambda x: np.array(x, np.uint16))
wide_arrays = st.lists(st.integers(0, 2**31 - 1), max_size=50).map(lambda x: np.array(x, np.uint32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shards")


@given(tokens=tokens_arrays | wide_arrays)
def test_round_trip(folder, tokens):
    path = folder / "round_trip.bin"
    shards.write_shard(path, tokens, vocab_size=NARROW if tokens.dtype == np.uint16 else WIDE)
    read = shards.read_shard(path)
    assert read.dtype == tokens.dtype
    assert not tokens.size or isinstance(read, np.memmap)
    np.testing.assert_array_equal(read, tokens)
    assert path.stat().st_size == 1024 + tokens.itemsize * len(tokens)


def test_format_is_the_published_one(tmp_path):
    """Byte for byte, written here without the writer."""
    shards.write_shard(tmp_path / "x.bin", np.array([1, 2, 513]))
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 3
    assert (tmp_path / "x.bin").read_bytes() == header.tobytes() + bytes([1, 0, 2, 0, 1, 2])


def test_wide_format_is_that_of_llm_c(tmp_path):
    """Of Llama 3: header {20240801, 7, n}, then uint32 (llm.c, dev/data/data_common.py)."""
    shards.write_shard(tmp_path / "x.bin", np.array([1, 128_000]), vocab_size=128_256)
    header = np.zeros(256, "<i4")
    header[:3] = 20240801, 7, 2
    assert (tmp_path / "x.bin").read_bytes() == header.tobytes() + bytes([1, 0, 0, 0, 0, 0xF4, 1, 0])


@given(
    damage=st.sampled_from(["cut", "grow", "magic", "version", "count", "noise"]),
    amount=st.integers(1, 2**30),
    tokens=tokens_arrays,
    vocab_size=st.sampled_from([NARROW, WIDE]),
)
def test_damaged_shards_are_refused(folder, damage, amount, tokens, vocab_size):
    path = folder / "damaged.bin"
    shards.write_shard(path, tokens, vocab_size=vocab_size)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: -(1 + amount % len(content))]
    elif damage == "grow":
        content += bytes(1 + amount % 100)
    elif damage == "noise":
        content = bytearray(np.random.default_rng(amount).bytes(amount % 3000))
    else:
        field = 4 * ["magic", "version", "count"].index(damage)
        old = int.from_bytes(content[field : field + 4], "little")
        content[field : field + 4] = ((old + amount) % 2**32).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        shards.read_shard(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_an_unchecked_reader_accepts_a_cut_shard(tmp_path):
    """Why the size is checked: without, half of the tokens are missing and nobody notices."""
    shards.write_shard(tmp_path / "x.bin", np.arange(100))
    content = (tmp_path / "x.bin").read_bytes()
    (tmp_path / "x.bin").write_bytes(content[:-100])
    assert len(np.memmap(tmp_path / "x.bin", np.uint16, "r", offset=1024)) == 50
    with pytest.raises(UserError, match="promises 100 tokens"):
        shards.read_shard(tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ((7, 1, 2), "magic number 7"),
        ((20240520, 2, 2), "version 2"),
        ((20240520, 1, -1), "promises -1"),
        ((20240801, 1, 1), "shard version 1; of uint32 only version 7"),
        ((20240520, 7, 2), "version 7; of uint16 only version 1"),
        ((20240801, 7, 2), "1028 bytes, but its header promises 2 tokens = 1032"),
    ],
)
def test_messages(tmp_path, header, message):
    content = np.zeros(257, "<i4")
    content[:3] = header
    (tmp_path / "x.bin").write_bytes(content.tobytes())
    with pytest.raises(UserError, match=message):
        shards.read_shard(tmp_path / "x.bin")


def test_tokens_outside_the_vocabulary(tmp_path):
    shards.write_shard(tmp_path / "x.bin", np.array([3, 9, 10, 11]))
    assert len(shards.read_shard(tmp_path / "x.bin", vocab_size=12)) == 4
    with pytest.raises(UserError, match=r"token 10 \(number 2\) is not in the vocabulary of 10"):
        shards.read_shard(tmp_path / "x.bin", vocab_size=10)


@pytest.mark.parametrize(("token", "vocab_size"), [(128_256, 128_256), (2**31, WIDE)])
def test_wide_tokens_outside_the_vocabulary(token, vocab_size, tmp_path):
    """Models take int32: without a vocabulary a token from 2^31 on would be negative."""
    shards.write_shard(tmp_path / "x.bin", np.array([5, 6]), vocab_size=WIDE)
    content = (tmp_path / "x.bin").read_bytes()
    (tmp_path / "x.bin").write_bytes(content[:-4] + np.array([token], "<u4").tobytes())
    assert np.memmap(tmp_path / "x.bin", "<u4", "r", offset=1024)[1] == token
    with pytest.raises(UserError, match=rf"token {token} \(number 1\) is not in the vocabulary of {vocab_size}"):
        shards.read_shard(tmp_path / "x.bin", vocab_size=vocab_size)


@pytest.mark.parametrize("wide", [0, 1])
def test_a_split_of_two_widths_is_refused(wide, tmp_path):
    """Numbers of two vocabularies side by side would be read without a word."""
    paths = [tmp_path / f"fineweb_val_00000{i}.bin" for i in range(2)]
    for i, path in enumerate(paths):
        shards.write_shard(path, np.arange(3), vocab_size=WIDE if i == wide else NARROW)
    message = r"fineweb_val_000001\.bin: tokens of uint\d+ beside uint\d+ in fineweb_val_000000"
    with pytest.raises(UserError, match=message):
        shards.read_split(tmp_path, "val")


@pytest.mark.parametrize("token", [65_536, -1])
def test_tokens_that_do_not_fit(tmp_path, token):
    with pytest.raises(UserError, match="0 to 65535"):
        shards.write_shard(tmp_path / "x.bin", np.array([0, token]))
    assert not list(tmp_path.iterdir())


@given(st.lists(tokens_arrays, min_size=1, max_size=4) | st.lists(wide_arrays, min_size=1, max_size=4), st.data())
def test_concatenated_tokens_are_one_array(parts, draw):
    whole = np.concatenate(parts)
    view = shards.ConcatenatedTokens(parts)
    assert (len(view), view.size, view.shape, view.dtype) == (
        whole.size,
        whole.size,
        whole.shape,
        whole.dtype,
    )
    bound = st.none() | st.integers(-len(whole) - 2, len(whole) + 2)
    index = slice(draw.draw(bound), draw.draw(bound), draw.draw(st.sampled_from([None, 1, 2, -1])))
    np.testing.assert_array_equal(view[index], whole[index])
    np.testing.assert_array_equal(np.asarray(view), whole)
    assert view[index].dtype == whole.dtype
    if whole.size:
        at = draw.draw(st.integers(-len(whole), len(whole) - 1))
        assert view[at] == whole[at]


@given(st.lists(tokens_arrays, max_size=5), st.integers(1, 20), st.sampled_from([NARROW, WIDE]))
def test_splits_roll_over_into_several_shards(parts, shard_tokens, vocab_size):
    import tempfile

    whole = np.concatenate([np.empty(0, np.uint16), *parts])
    with tempfile.TemporaryDirectory() as folder:
        shards.write_split(folder, "train", parts, shard_tokens=shard_tokens, vocab_size=vocab_size)
        sizes = [len(shards.read_shard(path)) for path in sorted(Path(folder).glob("fineweb_train_*.bin"))]
        assert sizes[:-1] == [shard_tokens] * (len(sizes) - 1)
        assert sizes[-1] <= shard_tokens
        if whole.size:
            found = shards.read_split(folder, "train")
            assert found.dtype == shards.token_dtype(vocab_size)
            np.testing.assert_array_equal(np.asarray(found), whole)
        else:
            with pytest.raises(UserError, match="hold no tokens"):
                shards.read_split(folder, "train")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    shards.write_shard(path, np.array([1, 2, 3]))
    monkeypatch.setattr(np, "ascontiguousarray", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        shards.write_shard(path, np.array([4, 5]))
    monkeypatch.undo()
    assert shards.read_shard(path).tolist() == [1, 2, 3]
    assert list(tmp_path.iterdir()) == [path]
