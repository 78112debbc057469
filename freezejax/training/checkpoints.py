"""Checkpoints of a run, and which run they are of: Orbax behind one small module."""

import contextlib
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from freezejax.atomic import write_atomically
from freezejax.data import checksums
from freezejax.errors import UserError
from freezejax.paths import PyTree, leaf_paths
from freezejax.training import processes
from freezejax.training.plan import RunPlan

ORIGIN = "run.json"  # in the folder of the checkpoints: which run they are of
# How a run is carried out, not what it computes. Its length is not among them: rates and fractions follow from it.
MAY_CHANGE = ("mesh", "log_every", "eval_every", "checkpoint_every", "draw_maps", "remat", "prefix_cache_gib")


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The checkpoints of one run: state and data position, newest `keep` kept, each written atomically.

    Every process of a run makes one and calls it alike; process 0 adds the SHA-256 of every file, last. A
    checkpoint without them was not finished. They are checked before Orbax reads: it does not see a flipped bit, and
    where it stumbles over a torn file it leaves tasks behind that complain later.

    >>> import jax, tempfile
    >>> with tempfile.TemporaryDirectory() as directory, Checkpoints(directory) as checkpoints:
    ...     checkpoints.save(3, {"w": jax.numpy.ones(2)}, {"next": 7})
    ...     checkpoints.restore(checkpoints.latest(), {"w": jax.ShapeDtypeStruct((2,), "float32")})
    ({'w': Array([1., 1.], dtype=float32)}, {'next': 7})
    """

    def __init__(self, directory: str | Path, *, keep: int = 2) -> None:
        """Opens (and makes) the directory; leftovers of a killed save are removed."""
        self._directory = Path(directory).absolute()
        newest = ocp.training.preservation_policies.LatestN(keep)
        self._checkpointer = ocp.training.Checkpointer(
            self._directory, preservation_policy=newest, cleanup_tmp_directories=True
        )

    def claim(self, plan: RunPlan, *, fresh: bool, policy: str = "") -> None:
        """Says in a fresh folder which run its checkpoints will be of; refuses one with the checkpoints of another run.

        It names a field that differs. A folder that does not say whose its checkpoints are is taken. `policy` says
        what else decides about a run.
        """
        file, now = self._directory / ORIGIN, _origin(plan) | ({"the policy": policy} if policy else {})
        if fresh:
            write_atomically(file, json.dumps(now, indent=1))
        if fresh or not file.exists():
            return
        try:
            known = dict(json.loads(file.read_text(encoding="utf-8")))
        except ValueError:
            raise UserError(f"{file} cannot be read as JSON; train in another directory") from None
        for name in [*now, *known]:
            if now.get(name) != known.get(name):
                there, here = known.get(name, "absent"), now.get(name, "absent")
                differs = "another" if name == "the schedule" else f"{there} there, {here} here"
                wrong = f"this directory belongs to another run: {name} is {differs}"
                raise UserError(f"{self._directory.parent}: {wrong}; train in a fresh directory")

    def save(self, step: int, state: PyTree, data_state: dict[str, Any]) -> None:
        """Saves the state after `step` updates; returns when it is on disk. A step saved before is kept."""
        if self.latest() != step:
            self._checkpointer.save(step, state, force=True, overwrite=True, custom_metadata={"data": data_state})
            _finish(self._directory / str(step))

    def latest(self) -> int | None:
        """Newest finished step, or None."""
        steps = [checkpoint.step for checkpoint in self._checkpointer.checkpoints]
        finished = [step for step in steps if (self._directory / str(step) / checksums.NAME).exists()]
        return max(finished, default=None)

    def restore(self, step: int, abstract: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """`(state, data position)` saved at `step`, in the shapes, dtypes and shardings of `abstract`.

        The shardings may be others than those it was saved with: another mesh, another number of processes.

        Raises:
          UserError: the checkpoint is damaged, holds another model or schedule, or cannot be read now.
        """
        folder = self._directory / str(step)
        wrong = f"checkpoint {folder} cannot be restored ({{}}); delete that folder to resume from an earlier one"
        state, custom = _load(folder, abstract, wrong, "not as it was saved")
        return state, custom["data"]

    def __exit__(self, *_: object) -> None:
        """Waits for work in flight and releases the directory."""
        self._checkpointer.close()


def save_params(path: str | Path, params: PyTree) -> None:
    """Saves the final parameters of a run, atomically, over what is there.

    Of several processes each calls it. Every device writes its own shards, so nothing is gathered.

    >>> import jax, tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     save_params(f"{directory}/params", {"w": jax.numpy.ones(2)})
    ...     load_params(f"{directory}/params", {"w": jax.ShapeDtypeStruct((2,), "float32")})["w"]
    Array([1., 1.], dtype=float32)
    """
    path = Path(path).absolute()
    ocp.save(path, params, overwrite=True)
    _finish(path)


def load_params(path: str | Path, abstract: PyTree) -> PyTree:
    """Loads what `save_params` saved, in the shapes of `abstract`.

    Raises:
      UserError: nothing there, damaged, or another model.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise UserError(f"{path}: no saved parameters here; has the run finished?")
    wrong = f"{path}: parameters cannot be read as this model ({{}})"
    return _load(path, abstract, wrong, "not as they were saved")[0]


def _origin(plan: RunPlan) -> dict[str, Any]:
    """What a run is, as JSON: the fields of its config and its model's, its leaves, and what trains when."""
    config = {name: value for name, value in dataclasses.asdict(plan.config).items() if name not in MAY_CHANGE}
    leaves = zip(leaf_paths(plan.abstract_params), jax.tree.leaves(plan.abstract_params), strict=True)
    masks = [bytes(map(bool, jax.tree.leaves(phase.mask))) for phase in plan.phases]
    digests = [hashlib.sha256(mask).hexdigest()[:16] for mask in masks]
    found = {
        **flatten_dict({"train": config, "model": dataclasses.asdict(plan.model.config)}, sep="."),
        **{f"leaf {path}": f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves},
        "the schedule": [[phase.start, phase.stop, mask] for phase, mask in zip(plan.phases, digests, strict=True)],
    }
    return json.loads(json.dumps(found, default=str))


def _finish(folder: Path) -> None:
    if processes.is_main():
        checksums.write(folder, everything=True)
    multihost_utils.sync_global_devices(f"{folder} is saved")


def _load(folder: Path, abstract: PyTree, wrong: str, not_as_saved: str) -> tuple[PyTree, dict[str, Any]]:
    """`(tree, metadata)`. Tells damage, and another model, in the words of `wrong`; any other trouble as what it is."""
    try:
        checksums.verify(folder, not_as_saved, everything=True)
        saved = ocp.metadata(folder)
        if difference := _difference(saved.metadata, abstract):
            raise UserError(wrong.format(difference))
        return ocp.load(folder, _placed(abstract)), saved.custom_metadata
    except checksums.Damaged as error:
        raise UserError(wrong.format(error)) from error
    except UserError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds: no memory, no permission, a disk that is away
        raise UserError(f"{folder} cannot be read now ({_reason(error)}); nothing was changed there") from error


def _difference(saved: PyTree, abstract: PyTree) -> str | None:
    """The first leaf of another model, told before Orbax finds it, which leaves coroutines behind where it stumbles."""
    trees = [dict(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True)) for tree in (saved, abstract)]
    for path in sorted(trees[0].keys() | trees[1].keys()):
        here, there = (f"has the shape {tree[path].shape}" if path in tree else "is absent" for tree in trees)
        if here != there:
            return f"{path} {here}; in this model it {there}"
    return None


def _placed(abstract: PyTree) -> PyTree:
    """Leaves without a sharding go to the default device: Orbax would take the one that they were saved with."""
    here = jax.sharding.SingleDeviceSharding(jax.config.jax_default_device or jax.local_devices()[0])
    place = functools.partial(jax.ShapeDtypeStruct, sharding=here)
    return jax.tree.map(lambda x: x if getattr(x, "sharding", None) else place(x.shape, x.dtype), abstract)


def _reason(error: BaseException) -> str:
    """Kind and first line of the first error: those that Orbax raises after it speak of its handlers."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])[:200]
