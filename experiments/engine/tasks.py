"""What one run minimizes, on what, and from which weights: functions that a variant names."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from freezejax.data import Corpus
from freezejax.models import Model
from freezejax.paths import PyTree
from freezejax.training.adaptive import Policy
from freezejax.training.batches import BatchSource, TokenBatches
from freezejax.training.config import TrainConfig
from freezejax.training.evaluation import Apply
from freezejax.training.objectives.base import Objective
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.prefix_cache.batches import PrefixBatches

Evaluate = Callable[[PyTree], Mapping[str, float]]


class Trained(NamedTuple):
    """What an earlier run of the study left."""

    apply: Apply
    params: PyTree


class Task(NamedTuple):
    """One run before it starts, for the functions that say what it minimizes and what it starts from."""

    model: Model
    config: TrainConfig
    corpus: Corpus
    mesh: Mesh | None
    evaluate: Evaluate
    trained: Callable[[str], Trained]  # of a variant in `Variant.needs`, with the seeds of this run
    directory: Path  # the run's folder


Minimize = Callable[[Task], tuple[Objective, BatchSource]]
Start = Callable[[Task], PyTree]
Decide = Callable[[Task], Policy]


def language_modelling(task: Task) -> tuple[Objective, BatchSource]:
    """The next token of the corpus: what every study does that says nothing else."""
    config = task.config
    objective = LanguageModelling(task.model, config.compute_dtype, task.evaluate, config.remat)
    return objective, TokenBatches(task.corpus.train, config, task.mesh)


def weights_of(variant: str) -> Start:
    """The weights that a run of the same model and seeds ended with: `Variant.start` of a run that goes on from it."""
    return lambda task: task.trained(variant).params


@contextlib.contextmanager
def until_the_end_of_a_run(batches: BatchSource) -> Iterator[BatchSource]:
    """What a source keeps beside its batches goes when the run has ended, and stays for one that was broken off."""
    whole = False
    try:
        yield batches
        whole = True
    finally:
        if isinstance(batches, PrefixBatches):
            batches.close(remove=whole)
