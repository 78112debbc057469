"""What a run minimizes and what it reports, as the loop sees it."""

import abc
from collections.abc import Mapping
from typing import Any

import jax

from freezejax.paths import PyTree

Batch = dict[str, Any]  # entries with a leading axis of train.batch_size rows


class Objective(abc.ABC):
    """A loss over batches, and the figures of an evaluation. Subclass it; only `loss` must be written.

    `loss` and `prepare` are pure and are traced once per phase. A batch has the entries that the run's source of
    batches gives it, and in a phase whose frozen prefix runs apart from the step also `prefix`, see
    `freezejax.training.prefix_cache.prefix`.

    >>> class SumOfSquares(Objective):
    ...     def loss(self, params, batch, key):
    ...         return (params["w"] ** 2 * batch["x"]).sum(), {"largest": params["w"].max()}
    >>> SumOfSquares().evaluate({})
    {}
    """

    @abc.abstractmethod
    def loss(self, params: PyTree, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`(loss, metrics)` of a batch, or of a microbatch of it; all are float32 scalars.

        Under accumulation loss, gradients and metrics are means over the microbatches. The metrics are recorded beside
        the loss, under names of their own. `batch` holds some rows of a prepared batch; `key`, for dropout and other
        noise, is another one in every step and microbatch.
        """

    def prepare(self, batch: Batch) -> Batch:
        """The global batch before it is split into microbatches: the place for what depends on all of its rows."""
        return batch

    def check(self, batch: Batch) -> None:  # noqa: B027 - nothing to check is a fine default
        """Raises a `UserError` where this process's rows of a batch, still on the host, are no input of the model."""

    def evaluate(self, params: PyTree) -> Mapping[str, float]:
        """Figures of parameters on held-out data, by name; called every `train.eval_every` steps and at the end."""
        return {}
