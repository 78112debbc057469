"""Both models against PyTorch: loss, logits and every gradient.

The numbers come from independent PyTorch implementations. Updating them is legitimate only when the file
in the shared folder is itself replaced by its authors, never to make a change of ours pass.
"""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from freezejax import models
from freezejax.models import importers

SHARED = Path(os.environ.get("FREEZEJAX_SHARED", Path(__file__).resolve().parents[3] / "shared"))
FILES = {"geglu": "geglu_toy.npz", "parameter_golf": "parameter_golf_baseline.npz"}


def load(family):
    path = SHARED / "golden" / FILES[family]
    if not path.exists():
        pytest.skip(f"no {path.name}: set FREEZEJAX_SHARED to the folder that has golden/")
    with np.load(path) as file:
        return dict(file)


def part(golden, prefix):
    return {name.removeprefix(prefix): array for name, array in golden.items() if name.startswith(prefix)}


def relative_errors(golden, gradients):
    wanted = part(golden, "grad:")
    assert gradients.keys() == wanted.keys()
    return {n: np.linalg.norm(gradients[n] - wanted[n]) / np.linalg.norm(wanted[n]) for n in wanted}


def loss_and_gradients(family, golden, config):
    apply, params = models.from_torch(family, part(golden, "param:"), config)
    model = models.build(family, **importers.drop_fixed(config, models.FAMILIES[family].fixed))

    def loss(params):
        logits = apply(params, golden["input_ids"])
        return models.cross_entropy(logits, golden["target_ids"]).mean(), logits

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return float(value), importers.state_to_torch(model, gradients), np.asarray(logits)


def test_loss_logits_and_gradients(own_family):
    golden = load(own_family)
    loss, gradients, logits = loss_and_gradients(own_family, golden, json.loads(str(golden["config"])))
    assert abs(loss - golden["loss"]) < 1e-5
    if "logits" in golden:
        np.testing.assert_allclose(logits, golden["logits"], atol=1e-5)
    errors = relative_errors(golden, gradients)
    assert max(errors.values()) < 1e-4, errors


def test_golden_gradients_see_a_change_of_the_rotary_base(own_family):
    """The counterpart: what is compared depends on the finest detail of the config."""
    golden = load(own_family)
    config = {**json.loads(str(golden["config"])), "rope_base": 5000.0}
    _, gradients, _ = loss_and_gradients(own_family, golden, config)
    assert max(relative_errors(golden, gradients).values()) > 1e-3
