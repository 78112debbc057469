"""Runs of one model share one evaluation; another model, window or dtype has its own."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.configs import progressive as config_file
from experiments.engine.variants import Evaluators
from experiments.progressive import make_study
from freezejax.data import ByteTable


@pytest.fixture(scope="module")
def evaluators():
    table = ByteTable(np.ones(256, np.int64), np.zeros(256, bool), np.zeros(256, bool))
    corpus = SimpleNamespace(val=np.zeros(5000, np.uint16), tokenizer=SimpleNamespace(byte_table=lambda: table))
    return Evaluators(config_file.get_config("tiny"), corpus)


@pytest.fixture(scope="module")
def variants():
    return {variant.name: variant for variant in make_study(config_file.get_config("tiny"), 256).variants}


def test_a_model_that_is_frozen_or_not_shares_its_evaluation(evaluators, variants):
    def of(name, **train):
        variant = variants[name]
        return evaluators.of(variant.model, lambda *_, **__: None, {**variant.train, **train})

    assert of("baseline") is of("progressive_small")
    assert of("baseline") is not of("trained_medium")
    assert of("baseline") is not of("selective_small")  # its weights are maps
    assert of("baseline") is not of("baseline", seq_len=32)
    assert of("baseline") is not of("baseline", compute_dtype="bfloat16")
