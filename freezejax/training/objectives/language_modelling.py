"""Language modelling: the mean negative log likelihood of the next token."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from freezejax.errors import UserError
from freezejax.models import Model
from freezejax.paths import PyTree
from freezejax.training.objectives.base import Batch, Objective


@dataclasses.dataclass(frozen=True)
class LanguageModelling(Objective):
    """Mean cross entropy in nats per target token, with dropout.

    Batches hold `inputs` and `targets`, int32 [B, T], and may hold `weights`, float32 [B, T] of 0 or more: the loss is
    then the weighted mean over the targets of the whole batch, whatever microbatches and devices it is split over. A
    target of weight 0 may be any integer; a batch without weight has the loss 0. `score` gives figures of parameters by
    name, as the evaluators of `freezejax.training.evaluation` do; for `remat` see `freezejax.models.Model`.

    >>> from freezejax import models
    >>> model = models.build("geglu", num_layers=1, model_dim=16, num_heads=1, vocab_size=8)
    >>> batch = {"inputs": jnp.zeros((1, 4), jnp.int32), "targets": jnp.ones((1, 4), jnp.int32)}
    >>> loss, metrics = LanguageModelling(model).loss(model.init(jax.random.key(0)), batch, jax.random.key(1))
    >>> 2.0 < float(loss) < 2.5, metrics  # log(8) = 2.08
    (True, {})
    """

    model: Model
    compute_dtype: str = "float32"  # of the activations
    score: Callable[[PyTree], Mapping[str, float]] | None = None
    remat: bool = False

    def loss(self, params: PyTree, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean over the targets of the batch; no metrics beside it."""
        nll_BxT = self.model.apply(params, batch["inputs"], targets_BxT=batch["targets"], **self.options(batch, key))
        return self.mean(batch, nll_BxT), {}

    def options(self, batch: Batch, key: jax.Array) -> dict[str, Any]:
        """How the model is applied in training."""
        options = {"dropout_key": key, "compute_dtype": jnp.dtype(self.compute_dtype), "remat": self.remat}
        if "prefix" in batch:  # what the first blocks made of the inputs
            options |= {"blocks": batch["prefix"].blocks, "hidden": batch["prefix"].hidden}
        return options

    def mean(self, batch: Batch, of_target_BxT: jax.Array) -> jax.Array:
        """The weighted mean over the targets of a prepared batch."""
        if "weights" in batch:
            of_target_BxT = jnp.where(batch["weights"] > 0, of_target_BxT, 0.0) * batch["weights"]
        return jnp.mean(of_target_BxT)

    def check(self, batch: Batch) -> None:
        """Refuses tokens outside of the model's vocabulary, which the model would answer with NaN."""
        size = self.model.config.vocab_size
        for name in ("inputs", "targets"):
            tokens = np.asarray(batch[name])
            if name == "targets" and "weights" in batch:
                tokens = tokens[np.asarray(batch["weights"]) > 0]
            wrong = tokens[(tokens < 0) | (tokens >= size)]
            if wrong.size:
                raise UserError(
                    f"batch: {name} hold the token {wrong[0]}, and the model's vocab_size is {size}, for tokens 0 to "
                    f"{size - 1}: build the model with the vocab_size of the tokenizer that made the tokens"
                )

    def prepare(self, batch: Batch) -> Batch:
        """Scales the weights to mean 1 over the whole batch: a plain mean of weighted losses is then weighted."""
        if "weights" not in batch:
            return batch
        mean = jnp.mean(batch["weights"])
        return {**batch, "weights": jnp.where(mean > 0, batch["weights"] / mean, 0.0)}

    def evaluate(self, params: PyTree) -> Mapping[str, float]:
        """What `score` finds, by name."""
        return {} if self.score is None else self.score(params)
