"""The cache by itself: what it returns was put there for the same tokens, whatever happened to its file."""

import errno
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freezejax.errors import UserError
from freezejax.training.prefix_cache.store import ActivationCache

ROW = {"x": jax.ShapeDtypeStruct((3, 2), jnp.bfloat16), "pushed": [jax.ShapeDtypeStruct((3,), jnp.float32)]}
ROW_BYTES, SEAL_BYTES, WINDOWS = 12 + 12, 16, 6


def batch(windows, version=0):
    """`(windows, tokens, activations)` of a batch, all different."""
    windows = np.asarray(windows, np.int64)
    tokens = windows[:, None] + np.arange(4)
    x = (windows[:, None, None] + np.arange(6).reshape(3, 2) + version).astype(jnp.bfloat16)
    return windows, tokens, {"x": x, "pushed": [np.float32(version) - x[:, :, 0].astype(np.float32)]}


def same(found, wanted):
    """Whether every row was found, and holds what is wanted."""
    leaves, structure, there = found
    return (
        there.all()
        and all(
            a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(leaves, jax.tree.leaves(wanted), strict=True)
        )
        and structure == jax.tree.structure(wanted)
    )


def nothing(found):
    return not found[2].any()


def opened(folder, limit=1e6, fingerprint=lambda: "origin"):
    return ActivationCache(ROW, WINDOWS, limit, folder, fingerprint)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    puts=st.lists(st.lists(st.integers(0, WINDOWS - 1), min_size=1, max_size=3, unique=True), max_size=6),
    wanted=st.lists(st.integers(0, WINDOWS - 1), min_size=1, max_size=3),
    fits=st.integers(0, WINDOWS),
    on_disk=st.booleans(),
    reopened=st.booleans(),
)
def test_it_returns_what_was_kept_of_each_window(tmp_path_factory, puts, wanted, fits, on_disk, reopened):
    folder = tmp_path_factory.mktemp("cache") / "cache" if on_disk else None
    limit = fits * (ROW_BYTES + SEAL_BYTES * on_disk) + 1
    cache, known = opened(folder, limit), set()
    for windows in puts:
        cache.put(*batch(windows))
        known |= {window for window in windows if window < fits}
    if on_disk and reopened:
        cache.close()
        cache = opened(folder, limit)
    windows, tokens, activations = batch(wanted)
    leaves, _, found = cache.get(windows, tokens)
    assert found.tolist() == [window in known for window in wanted]
    for leaf, right in zip(leaves, jax.tree.leaves(activations), strict=True):
        assert np.array_equal(leaf[found], right[found])
    assert np.array_equal(cache.has(windows), found)
    if on_disk:
        assert (folder / "activations").stat().st_size <= limit
    cache.remove()
    assert nothing(cache.get(windows, tokens))
    assert folder is None or not folder.exists()


def test_of_other_tokens_nothing_was_kept(tmp_path):
    opened_first = opened(tmp_path / "cache")
    windows, tokens, activations = batch([1, 2])
    opened_first.put(windows, tokens, activations)
    opened_first.close()
    cache = opened(tmp_path / "cache")
    assert nothing(cache.get(windows, tokens + 1))
    cache.put(windows, tokens + 1, batch([1, 2], version=1)[2])
    assert same(cache.get(windows, tokens + 1), batch([1, 2], version=1)[2])


@pytest.mark.parametrize("part", range(ROW_BYTES + SEAL_BYTES))
def test_every_flipped_byte_is_noticed(part, tmp_path):
    cache = opened(tmp_path / "cache")
    cache.put(*batch([0, 1]))
    cache.close()
    path = tmp_path / "cache" / "activations"
    whole = bytearray(path.read_bytes())
    whole[ROW_BYTES + SEAL_BYTES + part] ^= 64
    path.write_bytes(whole)
    cache = opened(tmp_path / "cache")
    assert nothing(cache.get(*batch([1])[:2]))
    assert same(cache.get(*batch([0])[:2]), batch([0])[2])


def test_counterpart_without_the_seal_a_flipped_byte_comes_back(tmp_path, monkeypatch):
    cache = opened(tmp_path / "cache")
    cache.put(*batch([0]))
    cache.close()
    path = tmp_path / "cache" / "activations"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 64]) + path.read_bytes()[1:])
    monkeypatch.setattr("freezejax.training.prefix_cache.store._seal", lambda tokens, row: b"")
    monkeypatch.setattr("freezejax.training.prefix_cache.store._File.seal", lambda self, slot: b"")
    found = opened(tmp_path / "cache").get(*batch([0])[:2])
    assert found[2].all()
    assert not same(found, batch([0])[2])


def test_a_full_disk_is_as_if_nothing_were_kept(tmp_path, monkeypatch):
    cache = opened(tmp_path / "cache")
    cache.put(*batch([0]))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        cache.put(*batch([1, 2]))
    assert nothing(cache.get(*batch([1])[:2]))
    assert same(cache.get(*batch([0])[:2]), batch([0])[2])
    cache.put(*batch([1]))
    assert same(cache.get(*batch([1, 0])[:2]), batch([1, 0])[2])
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", full)
        assert nothing(cache.get(*batch([0])[:2]))


def test_another_origin_empties_the_folder(tmp_path):
    cache = opened(tmp_path / "cache")
    cache.put(*batch([0]))
    cache.close()
    cache = opened(tmp_path / "cache", fingerprint=lambda: "another")
    assert nothing(cache.get(*batch([0])[:2]))
    cache.close()
    assert (tmp_path / "cache" / "fingerprint").read_text() == "another"


def test_a_cache_that_begins_does_not_wait_for_its_fingerprint(tmp_path):
    go_on = threading.Event()

    def slow():
        assert go_on.wait(10)
        return "origin"

    cache = opened(tmp_path / "cache", fingerprint=slow)
    cache.put(*batch([0]))
    assert same(cache.get(*batch([0])[:2]), batch([0])[2])
    assert not (tmp_path / "cache" / "fingerprint").exists()
    go_on.set()
    cache.close()
    assert same(opened(tmp_path / "cache").get(*batch([0])[:2]), batch([0])[2])


def test_a_file_killed_before_its_fingerprint_was_written_does_not_count(tmp_path):
    cache = opened(tmp_path / "cache")
    cache.put(*batch([0]))
    cache.close()
    (tmp_path / "cache" / "fingerprint").unlink()
    assert nothing(opened(tmp_path / "cache").get(*batch([0])[:2]))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/cache: the prefix cache cannot be made there: Not a directory"):
        opened(tmp_path / "file" / "cache")
