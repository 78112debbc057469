"""Runs that learn from a teacher as well as from text: another run of the study, or the model of a file."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.engine.pretrained import model_at, tokenizer_of
from experiments.engine.tasks import Minimize, Task, Trained
from freezejax import artifact, models
from freezejax.data import Corpus, tokenizer_at
from freezejax.errors import UserError
from freezejax.training.batches import BatchSource, TokenBatches
from freezejax.training.objectives.base import Objective
from freezejax.training.objectives.distillation import Distillation, TeacherBatches, check_options

Teacher = Callable[[Task], Trained]
FOLDER = "teacher_cache"  # in the folder of a run


@dataclasses.dataclass(frozen=True)
class Distilling:
    """How a run learns from its teacher, as `config.distillation` of a study says it; see `Distillation`.

    The teacher's logits may be kept, window by window, in "memory" or on "disk" in the run's folder, until it ends.

    Raises:
      UserError: a value out of range, named by its field.

    >>> Distilling(cache="dusk")
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: config.distillation.cache='dusk': expected off, memory or disk
    """

    temperature: float = 2.0
    share: float = 0.5  # of the divergence in the loss
    cache: str = "off"
    cache_gib: float = 4.0  # bound of what is kept

    def __post_init__(self) -> None:  # noqa: D105
        check_options(self.temperature, self.share)
        if self.cache not in ("off", "memory", "disk"):
            raise UserError(f"config.distillation.cache={self.cache!r}: expected off, memory or disk")
        if not 0 <= self.cache_gib < 2**30:
            raise UserError(f"config.distillation.cache_gib={self.cache_gib!r}: expected 0 to 2^30")

    def check_processes(self) -> None:
        """Refuses to keep logits where several processes would write the same folder."""
        if self.cache != "off" and jax.process_count() > 1:
            given = f"config.distillation.cache={self.cache!r}"
            raise UserError(f"{given} is for one process, and this run has {jax.process_count()}: use 'off'")


def distilled(teacher: Teacher, how: Distilling) -> Minimize:
    """Text and a teacher: what a variant minimizes whose runs are students."""

    def minimize(task: Task) -> tuple[Objective, BatchSource]:
        (apply, params), config = teacher(task), task.config
        objective = Distillation(
            task.model, config.compute_dtype, task.evaluate, config.remat, how.temperature, how.share
        )
        tokens = TokenBatches(task.corpus.train, config, task.mesh)
        vocab_size = task.model.config.vocab_size
        batches = TeacherBatches(tokens, apply, params, vocab_size, compute_dtype=config.compute_dtype)
        if how.cache != "off":
            batches.keep(how.cache, how.cache_gib, task.directory / FOLDER, "config.distillation.cache")
        return objective, batches

    return minimize


def run_of(variant: str) -> Teacher:
    """The teacher that a variant's run with the same seeds has become; `Variant.needs` must name it."""
    return lambda task: task.trained(variant)


@dataclasses.dataclass(frozen=True)
class FromFile:
    """The teacher of a packed file, or a pretrained model, of any architecture; `field` of a config names the path.

    Raises:
      UserError: no such file or folder, a damaged one, or one without a model.
    """

    path: str
    field: str
    model: Mapping[str, Any] = dataclasses.field(init=False)  # family and config, as for `models.build`
    tokenizer: tuple[str, str] | None = dataclasses.field(init=False)  # name and fingerprint, if the file says them

    def __post_init__(self) -> None:  # noqa: D105
        read = self._pretrained if self._is_pretrained() else self._packed
        try:
            model, tokenizer = read()
        except UserError as error:
            raise UserError(f"{self.field}={error}") from None  # which begins with the path
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "tokenizer", tokenizer)

    def _is_pretrained(self) -> bool:
        return Path(self.path).is_dir() or self.path.endswith(".gguf")

    def _packed(self) -> tuple[Mapping[str, Any], tuple[str, str] | None]:
        about = artifact.read_metadata(self.path)
        if about["model"] is None:
            raise UserError(f"{self.path!r}: it holds parameters alone, and no model")
        theirs = about["tokenizer"]
        return about["model"], None if theirs is None else (theirs["name"], theirs["sha256"])

    def _pretrained(self) -> tuple[Mapping[str, Any], tuple[str, str] | None]:
        spec = tokenizer_of(Path(self.path))
        theirs = tokenizer_at(spec) if spec else None
        return model_at(Path(self.path)), None if theirs is None else (theirs.name, theirs.fingerprint)

    def __call__(self, task: Task) -> Trained:
        """The model, read anew for each run."""
        if self._is_pretrained():
            apply, params = models.load_pretrained(self.path)
        else:
            apply, params, _ = artifact.load(self.path)
        return Trained(apply, params)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuses a teacher with another vocabulary than its students."""
        if (found := models.build(**self.model).config.vocab_size) != vocab_size:
            raise UserError(
                f"{self.field}={self.path!r}: the teacher has a vocabulary of {found} tokens, its students of "
                f"{vocab_size}; they must read the same tokens"
            )

    def check_tokenizer(self, corpus: Corpus) -> None:
        """Refuses a teacher that was trained on the tokens of another tokenizer; a file may not say of which."""
        ours = corpus.tokenizer
        if self.tokenizer is not None and self.tokenizer[1] != ours.fingerprint:
            name, fingerprint = self.tokenizer
            raise UserError(
                f"{self.field}={self.path!r}: the teacher was trained on the tokens of {name} "
                f"({fingerprint[:8]}), and the corpus has those of {ours.name} ({ours.fingerprint[:8]})"
            )
