"""Fine-tune one part of a pretrained model on one kind of text: what is gained there, what is forgotten of others?

    python -m experiments.domains --config=experiments/configs/domains.py:tiny --workdir=DIR

The target is the text of `config.data`, what may be forgotten that of `config.others`. Scores are bits per byte, window
by window, so that every change has an interval over text. As `freeze_except` with text instead of puzzles.
"""

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import bases, parts
from experiments.bases import Base
from experiments.engine import cli, study
from experiments.engine.tasks import Evaluate, Minimize, Task
from experiments.engine.variants import Evaluators, Study
from experiments.parts import Part
from experiments.report.forgetting import BITS, Items
from freezejax import data
from freezejax.data import Corpus, Tokenizer, Tokens
from freezejax.errors import UserError
from freezejax.paths import PyTree
from freezejax.sharding import Layout
from freezejax.training import processes
from freezejax.training.batches import BatchSource, TokenBatches
from freezejax.training.config import TrainConfig
from freezejax.training.evaluation import Apply, Windows, make_window_scorer, total
from freezejax.training.objectives.base import Objective
from freezejax.training.objectives.language_modelling import LanguageModelling

_PASSAGES = 16  # of a text, from its begin to its end
TARGET = "target"  # the name of the text that is fine-tuned on


def others_of(config: ConfigDict) -> dict[str, str]:
    """Name and path of every other text: NAME=PATH or PATH, with commas between them."""
    pairs = [text.strip().partition("=") for text in config.others.split(",")]
    found = {(name if equals else Path(name).name): (path if equals else name) for name, equals, path in pairs}
    if len(found) < len(pairs) or TARGET in found or not all(found):
        raise UserError(f"config.others={config.others!r}: expected NAME=PATH,NAME=PATH with a name for each text")
    return found


def spread(tokens: Tokens, count: int) -> np.ndarray:
    """So many tokens, or all, as passages from all over a text; what is scored on is not one chapter."""
    starts = np.linspace(0, max(0, len(tokens) - -(-count // _PASSAGES)), _PASSAGES).astype(int)
    if len(tokens) <= count:
        return np.asarray(tokens)
    return np.concatenate([np.asarray(tokens[start : start + -(-count // _PASSAGES)]) for start in starts])[:count]


def other_text(path: str, tokenizer: Tokenizer, split: str, tokens: int) -> Tokens:
    """Tokens of a text from all over it, at most so many, as a tokenizer writes them; shards are decoded for it."""
    own = data.load(path, cache_dir=str(cli.cache_dir() / "data"))
    # A token of a vocabulary of pieces is some bytes, of one of bytes it is one.
    text = own.tokenizer.decode(spread(getattr(own, split), 8 * tokens).tolist())
    return spread(tokenizer.encode(text), tokens)


class Domains:
    """Figures of parameters on every text: `val_ce` and `val_bpb` of the target, `ce/NAME` and `bpb/NAME` of each."""

    def __init__(self, scorers: Mapping[str, Callable[[PyTree], Windows]]):  # noqa: D107
        self.scorers = scorers

    def __call__(self, params: PyTree) -> Mapping[str, float]:
        """As an evaluation of the engine."""
        return self.items(params).figures

    def losses(self, params: PyTree) -> np.ndarray:
        """The bits of every window over the bytes of its text's mean window: of bits per byte they are the mean."""
        return self.items(params).losses_N

    def items(self, params: PyTree) -> parts.Scored:
        """Both; a window's loss is its score."""
        windows = {name: score(params) for name, score in self.scorers.items()}
        found = {name: total(of_text) for name, of_text in windows.items()}
        figures = {f"ce/{name}": of_text.val_ce for name, of_text in found.items()}
        figures |= {f"bpb/{name}": of_text.val_bpb for name, of_text in found.items()}
        bits_N = np.concatenate([w.nats_N / (math.log(2) * w.bytes_N.mean()) for w in windows.values()])
        return parts.Scored({**found[TARGET]._asdict(), **figures}, bits_N, bits_N)


class DomainEvaluators(Evaluators):
    """Scores on all texts; runs of one model share one."""

    def of(
        self, model: Mapping[str, Any], apply: Apply, train: Mapping[str, Any], layout: Layout | None = None
    ) -> Evaluate:
        """The evaluation of a model."""
        if layout not in self._known:
            train_config = TrainConfig.from_mapping(train)
            self._known[layout] = Domains(
                {
                    name: make_window_scorer(
                        apply,
                        tokens,
                        self.corpus.tokenizer.byte_table(),
                        batch_size=self.config.data.eval_batch_size,
                        seq_len=train_config.seq_len,
                        compute_dtype=train_config.compute_dtype,
                        layout=layout,
                    )
                    for name, tokens in texts(self.config, self.corpus).items()
                }
            )
        return self._known[layout]


def texts(config: ConfigDict, corpus: Corpus) -> dict[str, Tokens]:
    """What each text is scored on: as many windows of each."""
    wanted, seq_len = config.data.val_sequences, config.train.seq_len
    found: dict[str, Tokens] = {TARGET: spread(corpus.val, wanted * seq_len + 1)}
    for name, path in others_of(config).items():
        found[name] = other_text(path, corpus.tokenizer, "val", wanted * seq_len + 1)
    for name, tokens in found.items():
        if len(tokens) < wanted * seq_len + 1:
            windows = (len(tokens) - 1) // seq_len
            raise UserError(f"config.data.val_sequences={wanted}: the text {name!r} has only {windows} windows")
    return found


def make_study(config: ConfigDict, vocab_size: int, base: Base) -> Study:
    """The base as it is, and the same rows as `freeze_except`."""
    model = base.model(config, vocab_size)
    first = parts.base_row(model, config, base.start(), on_text(config, base))
    rows = parts.variants(config, model, base.start(), functools.partial(on_text, config, base))
    check = functools.partial(_check, config)
    inputs = _inputs(config, base)
    return Study("domains", [first, *rows], evaluators=DomainEvaluators, check=check, files=False, inputs=inputs)


def on_text(config: ConfigDict, base: Base, part: Part | None = None, few: int = 0) -> Minimize:
    """The next token of the target's text, with a share of the others' mixed in."""

    def minimize(task: Task) -> tuple[Objective, BatchSource]:
        assert isinstance(task.evaluate, Domains)
        score = parts.scorer(task, task.evaluate, None if part is None else base.params())
        objective: Objective = LanguageModelling(task.model, task.config.compute_dtype, score, task.config.remat)
        tokens = task.corpus.train
        if part is not None:
            objective = parts.few_of(objective, task, part, few)
            tokens = _mixed(config, task.corpus, part.mixed)
        return objective, TokenBatches(tokens, task.config, task.mesh)

    return minimize


def _mixed(config: ConfigDict, corpus: Corpus, share: float) -> Tokens:
    """The target's training text, and the others until they are this share of all; a short one comes again."""
    if not share:
        return corpus.train
    others = others_of(config).values()
    each = round(len(corpus.train) * share / (1 - share) / len(others))
    added = [np.resize(other_text(path, corpus.tokenizer, "train", each), each) for path in others]
    return np.concatenate([np.asarray(corpus.train), *added]).astype(corpus.train.dtype)


def _check(config: ConfigDict, corpus: Corpus) -> None:
    texts(config, corpus)


def _inputs(config: ConfigDict, base: Base) -> dict[str, str]:
    """What else the figures are of: the other texts, and a base of the user's."""
    cache = str(cli.cache_dir() / "data")
    found = {name: data.load(path, cache_dir=cache).fingerprint for name, path in others_of(config).items()}
    return found | ({"base": base.fingerprint()} if config.base.path else {})


def main() -> None:
    """Makes the base if need be, runs every row, then says what each gained and forgot."""
    config = flags.FLAGS.config
    others_of(config)
    base = bases.of_flags(make_study)
    made = functools.partial(make_study, base=base)
    if (workdir := study.main(made, tokenizer=base.tokenizer)) is not None:
        names = [TARGET, *others_of(config)]
        families = [name for name in names for _ in range(config.data.val_sequences)]
        processes.on_main(lambda: parts.tell(workdir, parts.rows_of(workdir), Items(families, [TARGET], BITS), config))


if __name__ == "__main__":
    cli.define_study_flags("experiments/configs/domains.py:tiny")
    cli.run(main)
