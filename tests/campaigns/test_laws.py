"""A run of the campaign, in a process of its own, for it has 8 devices; and it does find what is planted."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from freezejax import UserError
from freezejax.cost import prediction
from tests.campaigns import laws
from tests.campaigns.drawn import ABOVE, BELOW, FAMILIES, STEPS, Run, draw
from tests.campaigns.laws import BROKEN, HOLDS, Trained
from tests.experiments.forks import ROOT

TRAIN = {"steps": STEPS, "batch_size": 16, "seq_len": 16, "log_every": 1, "eval_every": 1, "remat": False}
TRAIN |= {"compute_dtype": "float32", "accumulation": 1, "ema_decay": 0.0}
MODEL = {"family": "geglu", "vocab_size": 64, "num_layers": 1, "model_dim": 16, "num_heads": 1}
FROZEN = [(0, [(".*/gate/kernel", False), (".*", True)])]
ALONE = Run(MODEL, TRAIN, FROZEN, (1, 1, 1, 1), stop_at=2)


def test_all_laws_hold_of_a_drawn_run():
    command = [sys.executable, "-m", "tests.campaigns.laws", "--runs=1", "--first=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.endswith("1 runs, seed 0: 0 laws broken\n")


def test_run_n_is_the_same_again_and_nearly_all_can_be_built():
    drawn = [draw(0, number) for number in range(60)]
    assert drawn[7] == draw(0, 7) != draw(1, 7)
    assert {run.model["family"] for run in drawn} == set(FAMILIES)
    assert {rule["kind"] for run in drawn for rule in run.model["weights"]} == {*BELOW, *ABOVE}
    refused = 0
    for run in drawn:
        try:
            run.build()
        except UserError:
            refused += 1
    assert refused < 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # for optax
    yield Trained(ALONE, tmp_path_factory.mktemp("whole"))
    jax.config.update("jax_numpy_dtype_promotion", before)


def test_a_frozen_leaf_that_changes_is_found(whole, tmp_path):
    assert laws.frozen_bits(ALONE, whole, tmp_path) == ""
    kept = whole.weights[2]["blocks"][0]["mlp"]["gate"]
    whole.weights[2]["blocks"][0]["mlp"]["gate"] = {"kernel": np.nextafter(kept["kernel"], np.float32(1))}
    assert laws.frozen_bits(ALONE, whole, tmp_path) == "a frozen leaf changed in step 3"
    whole.weights[2]["blocks"][0]["mlp"]["gate"] = kept


def test_a_run_that_ends_otherwise_is_found(whole, tmp_path):
    assert laws.resumed(ALONE, whole, tmp_path / "a") == ""
    assert laws.traced(ALONE, whole, tmp_path) == ""
    assert laws.saved(ALONE, whole, tmp_path) == ""
    other = Trained(Run(MODEL, {**TRAIN, "seed": 1}, FROZEN, (1, 1, 1, 1), 2), tmp_path / "b")
    assert laws.resumed(ALONE, other, tmp_path / "c") == "other bits, stopped after 2"
    other.losses[3] *= 1.01
    assert laws.traced(ALONE, other, tmp_path).startswith("the loss of step 3 is")


def test_a_wrong_prediction_and_an_error_are_found(whole, tmp_path, monkeypatch):
    assert laws._outcome(laws.costs, ALONE, whole, tmp_path) == (HOLDS, "")
    monkeypatch.setattr(prediction, "matmul_flops", lambda _: 0)
    found, told = laws._outcome(laws.costs, ALONE, whole, tmp_path)
    assert (found, told[:15]) == (BROKEN, "phase 0: flops=")
    assert laws._outcome(lambda *_: 1 / 0, ALONE, whole, tmp_path)[0] == BROKEN
