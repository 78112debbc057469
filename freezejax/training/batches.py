"""Where the batches of a run come from: what the loop asks of a source, and the source over a text of tokens."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from freezejax.data import Tokens, train_iterator
from freezejax.sharding import BATCH
from freezejax.training import processes
from freezejax.training.config import TrainConfig


class BatchSource(Protocol):
    """An endless source of batches that can go on from where it was.

    A resumed run ends with the bits of an uninterrupted one only if the batches after `set_state(get_state())` are
    those that would have followed, and depend on nothing but seed and position. With `train.prefix_cache` "memory" or
    "disk" a source also has `windows`, int64 [B]: what row of the corpus each row of the last batch is, and `count`:
    rows in the corpus.
    """

    @property
    def abstract(self) -> dict[str, Any]:
        """Shapes and dtypes of the global batch: a dict whose leaves have `train.batch_size` rows."""

    def __next__(self) -> dict[str, Any]:
        """This process's rows of the next batch, on the host; with one process these are all rows."""

    def get_state(self) -> dict[str, Any]:
        """The position, JSON-able; the same in every process."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a position, whatever mesh or number of processes it was saved with."""


def token_batch(config: TrainConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of tokens: `inputs` and `targets`, int32 [B, T]."""
    sequences = jax.ShapeDtypeStruct((config.batch_size, config.seq_len), jnp.int32)
    return {"inputs": sequences, "targets": sequences}


class TokenBatches:
    """Batches of `inputs` and `targets`, int32 [B, T], in an order that depends on `config.seed` alone.

    Neither the mesh nor the number of processes changes it.

    Raises:
      UserError: too few tokens, or a mesh that gives this process no whole share of the rows.

    >>> import numpy as np
    >>> batches = TokenBatches(np.arange(101, dtype=np.uint16), TrainConfig(steps=1, batch_size=2, seq_len=10))
    >>> next(batches)["inputs"].shape, batches.get_state()
    ((2, 10), {'next_index': 1})
    >>> batches.windows.shape, batches.count
    ((2,), 10)
    """

    def __init__(self, tokens: Tokens, config: TrainConfig, mesh: Mesh | None = None) -> None:
        """Reads nothing yet."""
        self.abstract: dict[str, jax.ShapeDtypeStruct] = token_batch(config)
        self.count = (len(tokens) - 1) // config.seq_len  # windows in the text
        self.windows = np.zeros(0, np.int64)  # numbers of this process's windows in the last batch
        share, shares = 0, 1
        if mesh is not None:
            rows = NamedSharding(mesh, PartitionSpec(BATCH))
            share, shares = processes.rows_of_process(rows, self.abstract["inputs"].shape)
        self._data = train_iterator(
            tokens,
            batch_size=config.batch_size // shares,
            seq_len=config.seq_len,
            seed=config.seed,
            process_index=share,
            process_count=shares,
            with_index=True,
        )
        self.get_state, self.set_state = self._data.get_state, self._data.set_state

    def __next__(self) -> dict[str, np.ndarray]:
        """This process's rows of the next batch."""
        rows = next(self._data)
        self.windows = rows.pop("index")
        return rows
