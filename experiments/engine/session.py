"""One command at work on one folder: everything that its runs share."""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from experiments.engine.evaluators import Evaluators
from experiments.engine.finished import Finished
from experiments.engine.progress import Progress
from experiments.engine.variants import Study
from freezejax.data import Corpus
from freezejax.training.interrupts import StopSignal


@dataclasses.dataclass(frozen=True)
class Session:
    """What the runs of one command share.

    Attributes:
      study: all variants, those not run by this command among them.
      config: of the study.
      corpus: what is trained and scored on.
      workdir: the study's folder.
      evaluators: one evaluation per model.
      finished: results of runs, of earlier commands and of this one; filled in process 0 alone.
      progress: what the terminal shows.
      stop: set by Ctrl-C and SIGTERM.
      tensorboard: also writes events.
    """

    study: Study
    config: ConfigDict
    corpus: Corpus
    workdir: Path
    evaluators: Evaluators
    finished: Finished
    progress: Progress
    stop: StopSignal
    tensorboard: bool = False
