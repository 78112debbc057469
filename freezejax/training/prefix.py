"""A frozen prefix: embedding and first blocks that a phase does not train, run apart from the step.

With `train.prefix_cache` other than "off" a phase whose first k blocks are frozen, with all that they read, is
two programs: `prefix(frozen, inputs) -> carried` and a step that begins at block k. There is no dropout in the
prefix then, so what it makes of a window never changes during the phase and can be kept.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from freezejax.errors import UserError
from freezejax.models import Model
from freezejax.partition import combine, partition
from freezejax.paths import PyTree
from freezejax.training.activation_cache import ActivationCache, remove_folder
from freezejax.training.batches import Batches
from freezejax.training.config import TrainConfig
from freezejax.training.phases import PhasePrograms
from freezejax.training.state import fingerprint
from freezejax.version import versions
from freezejax.weights import hold

FOLDER = "prefix_cache"  # in the folder of a run


def frozen_prefix(model: Model, config: TrainConfig, mask: PyTree) -> int:
    """Number of blocks that run apart from the step in a phase with this mask; 0 = everything is in the step.

    >>> from freezejax import models
    >>> model = models.build("geglu", num_layers=3, model_dim=16, num_heads=1)
    >>> mask = jax.tree.map(lambda _: False, jax.eval_shape(model.init, jax.random.key(0)))
    >>> mask["blocks"][2]["mlp"]["up"]["kernel"] = True
    >>> frozen_prefix(model, TrainConfig(steps=1, batch_size=1, seq_len=8, prefix_cache="memory"), mask)
    2
    """
    return 0 if config.prefix_cache == "off" else model.frozen_blocks(mask)


def check_one_device(config: TrainConfig, mesh: Mesh | None) -> None:
    """Refuses a prefix apart from the step where there is a mesh.

    Raises:
      UserError: naming the field.

    >>> check_one_device(TrainConfig(steps=1, batch_size=1, seq_len=8), None)
    """
    if mesh is not None and config.prefix_cache != "off":
        raise UserError(
            f"train.prefix_cache={config.prefix_cache!r} is for one device, and this run has {mesh.size}: use 'off', "
            "or let one device be visible"
        )


def make_prefix(model: Model, config: TrainConfig, abstract_params: PyTree, mask: PyTree) -> Callable[..., PyTree]:
    """Pure `prefix(frozen, inputs_BxT) -> carried`: what the frozen prefix makes of a batch, see `Model.prefix`.

    It runs in the microbatches of the step, so it needs no more memory than the step. `frozen` is the frozen half
    of the parameters; were a leaf of the other half read, the result would be NaN.
    """
    blocks, parts = frozen_prefix(model, config, mask), config.accumulation
    absent = partition(abstract_params, mask)[0]

    def prefix(frozen: PyTree, inputs: jax.Array) -> PyTree:
        if config.maps == "step":
            frozen = hold(frozen)
        params = combine(jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, leaf.dtype), absent), frozen)

        def part(inputs_BxT: jax.Array) -> PyTree:
            return model.prefix(params, inputs_BxT, blocks=blocks, compute_dtype=jnp.dtype(config.compute_dtype))

        if parts == 1:
            return part(inputs)
        carried = jax.lax.map(part, inputs.reshape(parts, -1, inputs.shape[1]))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), carried)

    return prefix


class PrefixBatches:
    """Batches with the entry `carried`: what the prefix program makes of them, computed or from a cache.

    A batch comes from the cache if all of its windows are there; otherwise all of it is computed. The first batch
    from the cache is computed as well: should a window have other bits in other company, the cache is given up,
    and every batch is computed as without one.

    Args:
      batches: of the run.
      program: `prefix(frozen, inputs)`, compiled.
      frozen: frozen half of the parameters.
      cache: of windows, or None: every batch is computed.

    >>> source = Batches(np.arange(9, dtype=np.uint16), TrainConfig(steps=1, batch_size=2, seq_len=2))
    >>> cache = ActivationCache(jax.ShapeDtypeStruct((2,), np.int32), windows=source.count, limit_bytes=100)
    >>> batches = PrefixBatches(source, lambda frozen, inputs: 2 * inputs, {}, cache)
    >>> for _ in range(6):
    ...     batch = next(batches)
    ...     assert (batch["carried"] == 2 * batch["inputs"]).all()
    >>> batches.computed, batches.reused
    (2, 4)
    """

    def __init__(
        self, batches: Batches, program: Callable[..., PyTree], frozen: PyTree, cache: ActivationCache | None = None
    ) -> None:
        """Reads nothing yet."""
        self._batches, self._program, self._frozen, self._cache = batches, program, frozen, cache
        self._pending: tuple[np.ndarray, np.ndarray, PyTree] | None = None
        self._checked = False
        self.computed = self.reused = 0  # batches

    def __next__(self) -> dict[str, Any]:
        """The next batch."""
        batch = next(self._batches)
        windows, inputs = self._batches.windows, batch["inputs"]
        self._keep()
        carried = None if self._cache is None else self._cache.get(windows, inputs)
        if carried is not None and not self._checked:
            carried = self._check(carried, inputs)
        if carried is None:
            self.computed += 1
            carried = self._program(self._frozen, inputs)
            self._pending = windows, inputs, carried
        else:
            self.reused += 1
        return batch | {"carried": carried}

    def close(self, *, remove: bool) -> None:
        """Ends the phase, or the run in the middle of it; then what is on disk stays for the resumed run."""
        self._keep()
        if self._cache is not None:
            self._cache.remove() if remove else self._cache.close()

    def _keep(self) -> None:
        # One step late, like the metrics: fetching waits for the prefix, and the step is under way behind it.
        if self._pending is not None and self._cache is not None:
            windows, inputs, carried = self._pending
            self._cache.put(windows, inputs, jax.device_get(carried))
        self._pending = None

    def _check(self, kept: PyTree, inputs: np.ndarray) -> PyTree | None:
        self._checked = True
        computed = jax.device_get(self._program(self._frozen, inputs))
        if fingerprint(computed) == fingerprint(kept):
            return kept
        assert self._cache is not None
        self._cache.remove()
        self._cache = None
        return None


@contextlib.contextmanager
def phase_batches(
    batches: Batches, programs: PhasePrograms, frozen: PyTree, config: TrainConfig, directory: Path
) -> Iterator[Batches | PrefixBatches]:
    """Batches as the step of a phase takes them. The cache goes with the phase; a broken-off one is left on disk.

    Args:
      batches: of the run.
      programs: of the phase.
      frozen: frozen half of the parameters, as the step takes it.
      config: of the run.
      directory: of the run; "disk" keeps its file there.

    Raises:
      UserError: the folder of the cache cannot be made, or the memory is too small.
    """
    if programs.prefix is None:
        remove_folder(directory / FOLDER)  # left by a run that was killed at the end of an earlier phase
        yield batches
        return
    cache = _make_cache(config, programs, frozen, batches.count, directory / FOLDER)
    found = PrefixBatches(batches, programs.prefix, frozen, cache)
    try:
        yield found
    except BaseException:
        found.close(remove=False)
        raise
    found.close(remove=True)


def _make_cache(
    config: TrainConfig, programs: PhasePrograms, frozen: PyTree, windows: int, folder: Path
) -> ActivationCache | None:
    assert programs.prefix is not None
    if config.prefix_cache == "recompute":
        return None
    carried = programs.prefix.compiled.out_info
    row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), carried)
    limit = config.prefix_cache_gib * 2**30
    if config.prefix_cache == "memory":
        try:
            return ActivationCache(row, windows, limit)
        except MemoryError:
            raise UserError(
                f"train.prefix_cache_gib={config.prefix_cache_gib}: this machine's memory is smaller; lower it, or use "
                "train.prefix_cache='disk'"
            ) from None
    return ActivationCache(row, windows, limit, folder, lambda: _origin(programs.prefix_text, frozen))


def _origin(program: str, frozen: PyTree) -> str:
    """Digest of all that activations follow from besides the tokens: the bits depend on the machine, too."""
    packages = [f"{name} {version}" for name, version in versions("freezejax", "jax", "jaxlib").items()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = [jax.devices()[0].device_kind, cores, os.environ.get("XLA_FLAGS", "")]
    return hashlib.sha256("\n".join(map(str, [program, fingerprint(frozen), *packages, *machine])).encode()).hexdigest()
