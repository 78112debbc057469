"""Distillation: a model learns from the text and from what another model makes of it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from freezejax.errors import UserError
from freezejax.models.loss import cross_entropy
from freezejax.paths import PyTree
from freezejax.training.batches import BatchSource
from freezejax.training.objectives.base import Batch
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.prefix_cache.batches import PrefixBatches, make_cache, origin
from freezejax.training.prefix_cache.store import ActivationCache
from freezejax.training.programs.compiler import compiler_options
from freezejax.training.programs.tracing import OneTrace


@dataclasses.dataclass(frozen=True)
class Distillation(LanguageModelling):
    """`(1 - share) * cross entropy + share * T^2 * KL(teacher || student)`, both at temperature T in the second term.

    Batches hold `teacher`, float [B, T, V]: the teacher's logits, as `TeacherBatches` adds them. The factor T^2 keeps
    the second gradient's size whatever T is. Defaults are those of the main seed (PR 1301). Source: Hinton et al. 2015,
    arXiv:1503.02531. The metrics are both terms, in nats per target.

    >>> from freezejax import models
    >>> model = models.build("geglu", num_layers=1, model_dim=16, num_heads=1, vocab_size=8)
    >>> tokens = jnp.zeros((1, 4), jnp.int32)
    >>> batch = {"inputs": tokens, "targets": tokens, "teacher": jnp.zeros((1, 4, 8))}
    >>> loss, metrics = Distillation(model).loss(model.init(jax.random.key(0)), batch, jax.random.key(1))
    >>> sorted(metrics)
    ['cross_entropy', 'divergence']
    """

    temperature: float = 2.0
    share: float = 0.5  # of the divergence

    def __post_init__(self) -> None:  # noqa: D105
        check_options(self.temperature, self.share)

    def loss(self, params: PyTree, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean over the targets of the batch; see the class."""
        logits_BxTxV = self.model.apply(params, batch["inputs"], **self.options(batch, key))
        wanted = jax.nn.log_softmax(batch["teacher"].astype(jnp.float32) / self.temperature)
        found = jax.nn.log_softmax(logits_BxTxV / self.temperature)
        apart_BxT = jnp.sum(jnp.exp(wanted) * (wanted - found), axis=-1)
        terms = {"cross_entropy": cross_entropy(logits_BxTxV, batch["targets"]), "divergence": apart_BxT}
        means = {name: self.mean(batch, of_target_BxT) for name, of_target_BxT in terms.items()}
        second = self.share * self.temperature**2 * means["divergence"]
        return (1 - self.share) * means["cross_entropy"] + second, means


def check_options(temperature: float, share: float) -> None:
    """Refuses what `Distillation` cannot be, before there is a model.

    >>> check_options(2.0, 0.5)
    """
    if not 0 < temperature < float("inf"):
        raise UserError(f"temperature={temperature!r} must be a finite number above 0")
    if not 0 <= share <= 1:
        raise UserError(f"share={share!r} must be a number from 0 to 1")


class TeacherBatches(PrefixBatches):
    """Batches of a source, with the logits of a teacher: `teacher`, in its compute dtype [B, T, V].

    The teacher is a program of its own, whose parameters are arguments: the student's step holds neither. It may be
    any `apply(params, tokens_BxT, compute_dtype=...)` over the same vocabulary, such as that of `artifact.load`; it has
    no dropout. What it makes of a window never changes, so it can be kept: 2 * V bytes per token in bfloat16.

    Raises:
      UserError: the teacher's vocabulary is not of `vocab_size` tokens.
    """

    def __init__(
        self,
        source: BatchSource,
        apply: Callable[..., jax.Array],
        params: PyTree,
        vocab_size: int,
        *,
        compute_dtype: str = "float32",
        cache: ActivationCache | None = None,
    ) -> None:
        """Traces the teacher for its shapes, and reads nothing yet."""

        def teach(params: PyTree, inputs_BxT: jax.Array) -> jax.Array:
            dtype = jnp.dtype(compute_dtype)
            return apply(params, inputs_BxT, compute_dtype=dtype).astype(dtype)

        self._teach = teach
        program = OneTrace(teach, "teacher", compiler_options=compiler_options())
        super().__init__(source, program, params, cache, "teacher")
        logits = jax.eval_shape(teach, params, source.abstract["inputs"])
        if logits.shape[-1] != vocab_size:
            raise UserError(f"the teacher has a vocabulary of {logits.shape[-1]} tokens, the student of {vocab_size}")
        self.abstract = {**source.abstract, "teacher": logits}
        self.count = getattr(source, "count", None)

    def keep(self, kind: str, gib: float, folder: Path, field: str = "cache") -> None:
        """Keeps the logits of each window from now on, up to a bound: in "memory", or on "disk" in `folder`.

        What another process left in the folder counts if it comes from the same teacher and machine. `field` names the
        option in errors.

        Raises:
          UserError: as `freezejax.training.prefix_cache.batches.make_cache`.
        """

        def fingerprint() -> str:
            lowered = jax.jit(self._teach).lower(self._frozen, self.abstract["inputs"])
            return origin(lowered.as_text(), self._frozen)

        self._cache = make_cache(field, kind, gib, self.abstract["teacher"], self._source, folder, fingerprint)
