"""The training batches of one process: its rows of every global batch, placed on its devices."""

from typing import Any

import numpy as np

from freezejax.data import Tokens, train_iterator
from freezejax.sharding import Layout
from freezejax.training import processes
from freezejax.training.config import TrainConfig


class Batches:
    """Endless global batches; their order depends on `config.seed` alone, not on mesh or processes.

    >>> import numpy as np
    >>> batches = Batches(np.arange(101, dtype=np.uint16), TrainConfig(steps=1, batch_size=2, seq_len=10))
    >>> next(batches)["inputs"].shape, batches.get_state()
    ((2, 10), {'next_index': 1})
    >>> batches.windows.shape, batches.count
    ((2,), 10)
    """

    def __init__(self, tokens: Tokens, config: TrainConfig, layout: Layout | None = None) -> None:
        """Reads nothing yet.

        Raises:
          UserError: too few tokens, or a mesh that gives this process no whole share of the rows.
        """
        self._layout, self._rows = layout, config.batch_size
        self.count = (len(tokens) - 1) // config.seq_len  # windows in the text
        self.windows = np.zeros(0, np.int64)  # numbers of this process's windows in the last batch
        share, shares = 0, 1
        if layout is not None:
            share, shares = processes.rows_of_process(layout.batch, (config.batch_size, config.seq_len))
        self._data = train_iterator(
            tokens,
            batch_size=config.batch_size // shares,
            seq_len=config.seq_len,
            seed=config.seed,
            process_index=share,
            process_count=shares,
            with_index=True,
        )

    def __next__(self) -> dict[str, Any]:
        """Inputs and targets, int32 [B, T]."""
        rows = next(self._data)
        self.windows = rows.pop("index")
        return rows if self._layout is None else processes.from_rows(rows, self._layout.batch, self._rows)

    def get_state(self) -> dict[str, Any]:
        """Position, JSON-able; the same in every process."""
        state: dict[str, Any] = self._data.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a position, whatever mesh or number of processes it was saved with."""
        self._data.set_state(state)
