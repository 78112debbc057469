"""The runs that are held to one device on meshes of 8: families, optimizers, kinds of weights, freezing and thawing."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from freezejax import FreezeSchedule, models
from freezejax.models import Model
from freezejax.training.config import TrainConfig

MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8))
VOCAB = 64
ALL = (".*", True)
GATE_UP = (r".*/(gate|up|fc)/kernel", False)
ATTENTION = (r".*/attn/.*", False)
MAPS = [{"pattern": r".*/(gate|up|fc)/kernel", "kind": kind} for kind in ("map", "gain")]
LORA = [{"pattern": r".*/(up|out|fc|proj)/kernel", "kind": "lora", "rank": 4}]
GOLF = {"family": "parameter_golf", "num_kv_heads": 2, "num_layers": 2}
HYBRID = {"family": "nemotron_h", "num_layers": 2, "pattern": "ME", "num_kv_heads": 2, "head_dim": 8, "mlp_width": 32}
HYBRID |= {"mamba_heads": 4, "mamba_head_dim": 8, "mamba_groups": 2, "state_dim": 4, "chunk": 8, "experts": 4}
HYBRID |= {"expert_choices": 2, "expert_width": 16, "shared_expert_width": 16}
EXPERTS = (r".*/experts/up_proj/.*", False)
MUON = {"name": "muon", "learning_rate": 5e-3}
FREEZE_THAW = ((0, [ALL]), (2, [GATE_UP, ALL]), (4, [ATTENTION, ALL]))


@dataclasses.dataclass(frozen=True)
class Case:
    """One run: what the model is, how it trains, what from when on, and the meshes it is held to."""

    model: Mapping[str, Any]
    train: Mapping[str, Any]
    schedule: Any = FREEZE_THAW
    meshes: tuple[tuple[int, ...], ...] = ((2, 2, 2),)  # data, fsdp, tensor, expert

    def build(self) -> tuple[Model, TrainConfig, FreezeSchedule]:
        sizes = {"family": "geglu", "vocab_size": VOCAB, "num_layers": 1, "model_dim": 32, "num_heads": 4}
        rope = {} if "family" in self.model else {"rope_dims": 8}
        fields = {"steps": 5, "batch_size": 16, "seq_len": 16, "log_every": 1, "eval_every": 2, **self.train}
        fields["optimizer"] = {"learning_rate": 3e-3, **fields.get("optimizer", {})}
        model = models.build(**{**sizes, **rope, **self.model})
        return model, TrainConfig.from_mapping(fields), FreezeSchedule(list(self.schedule))


CASES = {
    "geglu, AdamW": Case({}, {}, ((0, [ALL]), (2, [GATE_UP, ALL])), MESHES),
    "golf, Muon": Case({**GOLF, "num_layers": 1}, {"optimizer": MUON}, ((0, [GATE_UP, ALL]),), MESHES[2:3]),
    "golf, parts, dropout, mean weights": Case(
        {**GOLF, "dropout": 0.2}, {"accumulation": 2, "ema_decay": 0.9}, ((0, [ALL]), (2, [GATE_UP, ALL]))
    ),
    "geglu, q k v apart, Muon, kept moments, mean weights": Case(
        {"separate_qkv": True}, {"optimizer": MUON, "on_thaw": "keep", "ema_decay": 0.9}
    ),
    "golf, bfloat16": Case({**GOLF, "num_layers": 1}, {"compute_dtype": "bfloat16"}, ((0, [GATE_UP, ALL]),)),
    "geglu, sizes that do not divide": Case(
        {"model_dim": 36, "num_heads": 3, "mlp_mult": 1.75, "rope_dims": 4, "vocab_size": 61},
        {},
        ((0, [GATE_UP, ALL]),),
        ((1, 8, 1), (1, 1, 8)),
    ),
    "nemotron_h, experts on devices of their own": Case(HYBRID, {}, ((0, [ALL]), (2, [EXPERTS, ALL])), ((1, 2, 2, 2),)),
    **{
        f"geglu, maps drawn {mode} under adapters": Case(
            {"weights": [*MAPS, *LORA], "dropout": 0.1},
            {"draw_maps": mode, "accumulation": 2 if mode == "per_layer" else 1},
            ((0, [(r".*/(a|b|gain)", True), (".*", False)]),),
        )
        for mode in ("per_layer", "per_step", "once")
    },
}
RESUMED = Case(
    {},
    {"steps": 6, "eval_every": 5, "on_thaw": "keep", "ema_decay": 0.9},
    ((0, [ALL]), (2, [GATE_UP, ALL]), (4, [ALL])),
)
