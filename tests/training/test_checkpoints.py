"""Checkpoints: the newest two, never a torn one, and a damaged one told in one line."""

import errno
import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freezejax.data import checksums
from freezejax.errors import UserError
from freezejax.training.checkpoints import Checkpoints, load_params, save_params

STATE = {
    "w": jax.random.normal(jax.random.key(0), (4096,)),
    "count": jnp.int32(3),
    "special": jnp.array([-0.0, jnp.inf, 1e-45]),
}
ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), STATE)


def saved(directory, *steps):
    with Checkpoints(directory) as checkpoints:
        for step in steps:
            checkpoints.save(step, STATE, {"next": step})
    return directory


def test_what_is_restored_is_what_was_saved_bit_for_bit(tmp_path):
    with Checkpoints(saved(tmp_path, 5)) as checkpoints:
        state, position = checkpoints.restore(5, ABSTRACT)
    assert position == {"next": 5}
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(STATE), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_the_newest_two_are_kept(tmp_path):
    saved(tmp_path, 1, 2, 3)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["2", "3"]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 3
        checkpoints.save(3, STATE, {"next": 99})  # saved before: kept as it is
        assert checkpoints.restore(3, ABSTRACT)[1] == {"next": 3}


def test_leftovers_of_a_killed_save_are_ignored_and_removed(tmp_path):
    saved(tmp_path, 1)
    torn = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", torn)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.save(2, STATE, {"next": 2})
        assert checkpoints.latest() == 2
    assert not torn.exists()


def missing_metadata(folder):
    (folder / "_CHECKPOINT_METADATA").unlink()


def missing_manifest(folder):
    for path in folder.rglob("manifest.ocdbt"):
        path.unlink()


def empty_data(folder):
    for path in folder.rglob("d/*"):
        path.write_bytes(b"")


def garbage_data(folder):
    for path in folder.rglob("d/*"):
        path.write_bytes(b"x" * path.stat().st_size)


def one_flipped_bit(folder):
    largest = max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def no_content(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = [missing_manifest, empty_data, garbage_data, one_flipped_bit, no_content, missing_metadata]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_in_one_line_or_not_counted(damage, tmp_path):
    saved(tmp_path, 1, 2)
    damage(tmp_path / "2")
    with Checkpoints(tmp_path) as checkpoints:
        if checkpoints.latest() == 2:
            with pytest.raises(UserError) as raised:
                checkpoints.restore(2, ABSTRACT)
            assert str(tmp_path / "2") in str(raised.value)
            assert "\n" not in str(raised.value)
        else:
            assert checkpoints.latest() == 1
    shutil.rmtree(tmp_path / "2", ignore_errors=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(checkpoints.latest(), ABSTRACT)[1] == {"next": 1}


def test_without_its_checksums_a_checkpoint_is_not_seen_and_is_saved_again(tmp_path):
    saved(tmp_path, 1, 2)
    (tmp_path / "2" / checksums.NAME).unlink()
    garbage_data(tmp_path / "2")  # whatever stands there
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.save(2, STATE, {"next": 7})
        assert checkpoints.latest() == 2
        state, position = checkpoints.restore(2, ABSTRACT)
    assert position == {"next": 7}
    assert np.array_equal(state["w"], STATE["w"])


def test_counterpart_orbax_alone_does_not_see_a_flipped_bit(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    one_flipped_bit(tmp_path / "1")
    monkeypatch.setattr(checksums, "verify", lambda *_, **__: None)
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = checkpoints.restore(1, ABSTRACT)
    assert any(np.asarray(state[name]).tobytes() != np.asarray(STATE[name]).tobytes() for name in STATE)


OTHER_MODELS = {
    r"\(w has the shape \(4096,\); in this model it has the shape \(7,\)\)": {
        "w": jax.ShapeDtypeStruct((7,), jnp.float32)
    },
    r"\(v is absent; in this model it has the shape \(1,\)\)": {"v": jax.ShapeDtypeStruct((1,), jnp.float32)},
}


@pytest.mark.parametrize("message", OTHER_MODELS)
def test_a_checkpoint_of_another_model_is_refused_by_name(message, tmp_path):
    saved(tmp_path, 1)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=f"cannot be restored {message}"):
        checkpoints.restore(1, {**ABSTRACT, **OTHER_MODELS[message]})
    gc.collect()  # Orbax, where it finds the difference itself, leaves coroutines behind that complain now


TROUBLES = {
    "MemoryError": MemoryError(),
    "OSError": OSError(errno.EIO, "Input/output error"),
    "PermissionError": PermissionError(errno.EACCES, "Permission denied"),
    "JaxRuntimeError": jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
    "ValueError": ValueError("NOT_FOUND: Error opening"),
}


@pytest.mark.parametrize("kind", TROUBLES)
@pytest.mark.parametrize("while_checking", [False, True], ids=["loading", "checking"])
def test_trouble_that_is_not_the_checkpoints_gives_no_destructive_advice(kind, while_checking, tmp_path, monkeypatch):
    saved(tmp_path, 1)
    save_params(tmp_path / "params", STATE)

    def trouble(*_, **__):
        raise TROUBLES[kind]

    with Checkpoints(tmp_path) as checkpoints:
        if while_checking:
            monkeypatch.setattr(checksums, "_sha256", trouble)
        else:
            monkeypatch.setattr("freezejax.training.checkpoints.ocp.load", trouble)
        for read in (lambda: checkpoints.restore(1, ABSTRACT), lambda: load_params(tmp_path / "params", ABSTRACT)):
            with pytest.raises(UserError) as raised:
                read()
            told = str(raised.value)
            assert kind in told or TROUBLES[kind].strerror in told
            assert not any(word in told for word in ("delete", "damaged", "not as", "as this model", "\n"))
        monkeypatch.undo()
        assert checkpoints.restore(1, ABSTRACT)[1] == {"next": 1}


def test_the_loop_tells_a_damaged_checkpoint_in_one_line(run, entries, tmp_path):
    run(tmp_path, entries["later"], stop_at=5)
    garbage_data(tmp_path / "checkpoints" / "5")
    with pytest.raises(UserError, match=r"checkpoint .*/5 cannot be restored .* delete that folder"):
        run(tmp_path, entries["later"])
    shutil.rmtree(tmp_path / "checkpoints" / "5")
    found, recorder = run(tmp_path, entries["later"])
    assert found is not None
    assert recorder.begun == [0]


def test_parameters_are_replaced_whole_and_damage_is_told(tmp_path):
    path = tmp_path / "params"
    save_params(path, {"w": jnp.zeros(4096)})
    save_params(path, {"w": jnp.ones(4096)})
    abstract = {"w": jax.ShapeDtypeStruct((4096,), jnp.float32)}
    assert bool((load_params(path, abstract)["w"] == 1).all())
    # What a kill in the middle of a save leaves beside it does not hinder the next save.
    shutil.copytree(path, tmp_path / "params.orbax-checkpoint-tmp")
    save_params(path, {"w": jnp.full(4096, 2.0)})
    assert bool((load_params(path, abstract)["w"] == 2).all())
    with pytest.raises(UserError, match=r"cannot be read as this model \(w has the shape \(4096,\)"):
        load_params(path, {"w": jax.ShapeDtypeStruct((5,), jnp.float32)})
    gc.collect()
    garbage_data(path)
    with pytest.raises(UserError, match="cannot be read as this model"):
        load_params(path, abstract)
    with pytest.raises(UserError, match="has the run finished"):
        load_params(tmp_path / "nothing", abstract)
