"""Run by test_sweep.py in a process of its own: a sweep over 8 simulated devices, and over one. Prints JSON."""

import json

import jax
import numpy as np

from freezejax import FreezeSchedule, models
from freezejax.training.batches import TokenBatches
from freezejax.training.config import TrainConfig
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.sweep import SweepResult, sweep

ALL = (".*", True)
SCHEDULES = [
    FreezeSchedule([(0, [ALL]), (start, [(rf".*/{part}/.*", False), ALL])])
    for start in (1, 2, 3)
    for part in ("attn", "mlp", "ln1")
]


def swept(devices: list[jax.Device]) -> list[SweepResult]:
    model = models.build("geglu", vocab_size=61, num_layers=1, model_dim=16, num_heads=1)
    config = TrainConfig(steps=4, batch_size=2, seq_len=16, log_every=1)
    tokens = (np.arange(500) * 7 % 61).astype(np.uint16)
    objective = LanguageModelling(model, config.compute_dtype)
    return list(sweep(model, objective, TokenBatches(tokens, config), config, SCHEDULES, devices=devices))


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_disable_most_optimizations", True)
    one, eight = swept(jax.devices()[:1]), swept(jax.devices())
    pairs = [
        (a, b)
        for left, right in zip(one, eight, strict=True)
        for a, b in zip(*(jax.tree.leaves(each.params) for each in (left, right)), strict=True)
    ]
    found = {
        "devices": jax.device_count(),
        "indices": [each.index for each in eight],
        "largest difference": max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs),
        "change": max(
            float(np.abs(np.asarray(a) - np.asarray(b)).max())
            for a, b in zip(*(jax.tree.leaves(eight[i].params) for i in (0, 1)), strict=True)
        ),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
