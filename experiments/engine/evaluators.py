"""The evaluations of a study: one per model, for all the runs that share it."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.engine.variants import Variant
from freezejax.data import Corpus
from freezejax.paths import PyTree
from freezejax.sharding import Layout
from freezejax.training.config import TrainConfig
from freezejax.training.evaluation import Apply, Evaluation, make_evaluator


class Evaluators:
    """The evaluations of a study, of weights as trained and of those from a file alike.

    Runs of one model share one: it is traced and compiled once.

    Args:
      config: of the study.
      corpus: whose validation text is scored.
    """

    def __init__(self, config: ConfigDict, corpus: Corpus) -> None:  # noqa: D107
        self._config, self._corpus = config, corpus
        self._known: dict[Any, Callable[[PyTree], Evaluation]] = {}

    def of(
        self, model: Mapping[str, Any], apply: Apply, variant: Variant, layout: Layout | None = None
    ) -> Callable[[PyTree], Evaluation]:
        """The evaluation of a model: `model` is its config, `apply` what that config stands for."""
        train_config = TrainConfig.from_mapping(variant.train)
        key = (json.dumps(model, sort_keys=True), train_config.seq_len, train_config.compute_dtype, layout is None)
        if key not in self._known:
            val, seq_len = self._corpus.val, train_config.seq_len
            self._known[key] = make_evaluator(
                apply,
                val,
                self._corpus.tokenizer.byte_table(),
                batch_size=self._config.data.eval_batch_size,
                seq_len=seq_len,
                compute_dtype=train_config.compute_dtype,
                layout=layout,
                every=every_window(len(val), seq_len, self._config.data.val_sequences),
            )
        return self._known[key]


def every_window(tokens: int, seq_len: int, wanted: int) -> int:
    """Stride over validation windows that keeps at least `wanted` of them; 0 wants all.

    >>> every_window(10_001, 10, 0), every_window(10_001, 10, 300)
    (1, 3)
    """
    return max(1, (tokens - 1) // seq_len // wanted) if wanted else 1
