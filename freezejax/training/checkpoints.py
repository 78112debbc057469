"""Checkpoints of a run: Orbax behind one small module."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import jax
from orbax.checkpoint import v1 as ocp

from freezejax.data import checksums
from freezejax.errors import UserError
from freezejax.paths import PyTree
from freezejax.training import processes


class Checkpoints:
    """The checkpoints of one run: state and data position, newest `keep` kept, each written atomically.

    Every process of a run makes one and calls it alike; process 0 adds the SHA-256 of every file, last. A
    checkpoint without them was not finished. They are checked before Orbax reads: it does not see a flipped bit, and
    where it stumbles over a torn file it leaves tasks behind that complain later.

    >>> import jax, tempfile
    >>> import jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as directory, Checkpoints(directory) as checkpoints:
    ...     checkpoints.save(3, {"w": jnp.ones(2)}, {"next": 7})
    ...     step = checkpoints.latest()
    ...     state, position = checkpoints.restore(step, {"w": jax.ShapeDtypeStruct((2,), jnp.float32)})
    >>> step, position
    (3, {'next': 7})
    """

    def __init__(self, directory: str | Path, *, keep: int = 2) -> None:
        """Opens (and makes) the directory; leftovers of a killed save are removed."""
        self._directory = Path(directory).absolute()
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, state: PyTree, data_state: dict[str, Any]) -> None:
        """Saves the state after `step` updates; returns when it is on disk. A step saved before is kept."""
        if self.latest() != step:
            self._checkpointer.save(step, state, force=True, overwrite=True, custom_metadata={"data": data_state})
            if processes.is_main():
                checksums.write(self._folder(step), everything=True)
            processes.wait_for_all(f"checkpoint {step}")

    def latest(self) -> int | None:
        """Newest finished step, or None."""
        steps = [checkpoint.step for checkpoint in self._checkpointer.checkpoints]
        return max((step for step in steps if (self._folder(step) / checksums.NAME).exists()), default=None)

    def _folder(self, step: int) -> Path:
        return self._directory / str(step)

    def restore(self, step: int, abstract: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """`(state, data position)` saved at `step`, in the shapes, dtypes and shardings of `abstract`.

        The shardings may be others than those it was saved with: another mesh, another number of processes.

        Raises:
          UserError: the checkpoint is damaged, holds another model or schedule, or cannot be read now.
        """
        folder = self._folder(step)
        wrong = f"checkpoint {folder} cannot be restored ({{}}); delete that folder to resume from an earlier one"
        with _told_in_one_line(folder, wrong):
            checksums.verify(folder, "not as it was saved", everything=True)
            saved = self._checkpointer.metadata(step)
            _check_shapes(saved.metadata, abstract)
            return self._checkpointer.load(step, _placed(abstract)), saved.custom_metadata["data"]

    def close(self) -> None:
        """Waits for work in flight and releases the directory."""
        self._checkpointer.close()

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes."""
        self.close()


def save_params(path: str | Path, params: PyTree) -> None:
    """Saves the final parameters of a run, atomically, over what is there.

    Of several processes each calls it. Every device writes its own shards, so nothing is gathered.

    >>> import jax, tempfile
    >>> import jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     save_params(f"{directory}/params", {"w": jnp.ones(2)})
    ...     load_params(f"{directory}/params", {"w": jax.ShapeDtypeStruct((2,), jnp.float32)})["w"]
    Array([1., 1.], dtype=float32)
    """
    ocp.save(Path(path).absolute(), params, overwrite=True)
    if processes.is_main():
        checksums.write(Path(path), everything=True)
    processes.wait_for_all(f"{path} is saved")


def load_params(path: str | Path, abstract: PyTree) -> PyTree:
    """Loads what `save_params` saved, in the shapes of `abstract`.

    Raises:
      UserError: nothing there, damaged, or another model.

    >>> load_params("/nowhere", {})
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: /nowhere: no saved parameters here; has the run finished?
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise UserError(f"{path}: no saved parameters here; has the run finished?")
    with _told_in_one_line(path, f"{path}: parameters cannot be read as this model ({{}})"):
        checksums.verify(path, "not as they were saved", everything=True)
        _check_shapes(ocp.metadata(path).metadata, abstract)
        return ocp.load(path, _placed(abstract))


class _OtherModel(UserError):
    """What was saved has other leaves or shapes."""


@contextlib.contextmanager
def _told_in_one_line(path: Path, wrong: str) -> Iterator[None]:
    """Tells damage, and another model, in the words of `wrong`; any other trouble as what it is."""
    try:
        yield
    except (checksums.Damaged, _OtherModel) as error:
        raise UserError(wrong.format(error)) from error
    except UserError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds: no memory, no permission, a disk that is away
        raise UserError(f"{path} cannot be read now ({_reason(error)}); nothing was changed there") from error


def _check_shapes(saved: PyTree, abstract: PyTree) -> None:
    """Refuses another model before Orbax does, which leaves coroutines behind where it stumbles."""
    shapes, wanted = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
        for leaves in map(jax.tree.leaves_with_path, (saved, abstract))
    )
    for path in sorted(shapes.keys() | wanted.keys()):
        if shapes.get(path) != wanted.get(path):
            here, there = (f"has the shape {tree[path]}" if path in tree else "is absent" for tree in (shapes, wanted))
            raise _OtherModel(f"{path} {here}; in this model it {there}")


def _placed(abstract: PyTree) -> PyTree:
    """Leaves without a sharding go to the default device: Orbax would take the one that they were saved with."""
    here = jax.sharding.SingleDeviceSharding(jax.config.jax_default_device or jax.local_devices()[0])

    def one(leaf: Any) -> Any:
        if getattr(leaf, "sharding", None) is not None:
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)

    return jax.tree.map(one, abstract)


def _reason(error: BaseException) -> str:
    """Kind and first line of the first error: those that Orbax raises after it speak of its handlers."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])[:200]
