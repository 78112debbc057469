"""Run by test_hybrid.py in a process of its own: a mixture of experts for 8 H100s, and what they exchange, as JSON."""

import json

import jax

from freezejax import FreezeSchedule, aot, models
from freezejax.sharding import make_mesh
from freezejax.training.config import TrainConfig
from freezejax.training.plan import RunPlan

EXPERTS, WIDTH, HIDDEN = 8, 64, 48


def main() -> None:
    """With the experts frozen, and with everything trained."""
    jax.config.update("jax_platforms", "cpu")
    topology = aot.load("h100:1x1x8")
    sizes = {"model_dim": WIDTH, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "mlp_width": 64, "vocab_size": 64}
    sizes |= {"mamba_heads": 2, "mamba_groups": 1, "experts": EXPERTS, "expert_choices": 2, "expert_width": HIDDEN}
    model = models.build("nemotron_h", num_layers=1, pattern="E", shared_expert_width=40, **sizes)
    config = TrainConfig(steps=4, batch_size=64, seq_len=512)
    schedule = FreezeSchedule([(0, [(".*", True)]), (2, [(".*/experts/.*", False), (".*", True)])])
    plan = RunPlan(model, config, schedule, make_mesh(data=2, expert=4, devices=topology.devices))
    found = [aot.compile_for(plan.lower(phase), topology).collectives for phase in (0, 1)]
    print(json.dumps([[(one.kind, one.shape, one.group) for one in program] for program in found]))


if __name__ == "__main__":
    main()
