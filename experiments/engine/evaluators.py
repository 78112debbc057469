"""The evaluations of a study: one per model, for all the runs that share it."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from freezejax.data import Corpus
from freezejax.paths import PyTree
from freezejax.sharding import Layout
from freezejax.training.config import TrainConfig
from freezejax.training.evaluation import Apply, make_evaluator

Evaluate = Callable[[PyTree], Mapping[str, float]]


class Evaluators:
    """The evaluations of a study on the validation text of a corpus, of weights as trained and of those from a file.

    Runs of one model share one: it is traced and compiled once. A study that compares other figures overrides `make`.
    """

    def __init__(self, config: ConfigDict, corpus: Corpus) -> None:  # noqa: D107
        self.config, self.corpus = config, corpus
        self._known: dict[Any, Evaluate] = {}

    def of(
        self, model: Mapping[str, Any], apply: Apply, train: Mapping[str, Any], layout: Layout | None = None
    ) -> Evaluate:
        """The evaluation of a model: `model` is its config, `apply` what that stands for, `train` how it trains."""
        train_config = TrainConfig.from_mapping(train)
        key = (json.dumps(model, sort_keys=True), train_config.seq_len, train_config.compute_dtype, layout is None)
        if key not in self._known:
            self._known[key] = self.make(apply, train_config, layout)
        return self._known[key]

    def make(self, apply: Apply, train: TrainConfig, layout: Layout | None) -> Evaluate:
        """An evaluation of parameters; of language: `val_ce`, `val_bpb`, and the `tokens` and `bytes` scored."""
        val, wanted = self.corpus.val, self.config.data.val_sequences
        windows = (len(val) - 1) // train.seq_len
        evaluate = make_evaluator(
            apply,
            val,
            self.corpus.tokenizer.byte_table(),
            batch_size=self.config.data.eval_batch_size,
            seq_len=train.seq_len,
            compute_dtype=train.compute_dtype,
            layout=layout,
            every=max(1, windows // wanted) if wanted else 1,  # keeps at least as many as are wanted; 0 wants all
        )
        return lambda params: evaluate(params)._asdict()
