"""Runs drawn by chance along every axis at once: family, kinds of weights, schedule, optimizer, mesh, dtype."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from freezejax import FreezeSchedule, models
from freezejax.models import Model
from freezejax.training.config import TrainConfig

VOCAB, STEPS, SEQ_LEN = 64, 5, 16
_SIZES = {"vocab_size": VOCAB, "num_layers": 2, "model_dim": 32, "num_heads": 4}
_HYBRID = {"num_kv_heads": 2, "head_dim": 8, "mlp_width": 32, "mamba_heads": 4, "mamba_head_dim": 8, "mamba_groups": 2}
_HYBRID |= {"state_dim": 4, "chunk": 8, "experts": 4, "expert_choices": 2, "expert_width": 16}
_HYBRID |= {"shared_expert_width": 16}
# Family -> its other fields, each with what may be drawn.
FAMILIES: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "geglu": {
        "separate_qkv": (False, True),
        "correction": ("none", "gelu"),
        "correction_rank": (4,),
        "rope_dims": (8,),
    },
    "parameter_golf": {"num_kv_heads": (2,)},
    "gpt2": {"positions": (SEQ_LEN,)},
    "llama": {"num_kv_heads": (2,), "head_dim": (8,), "mlp_mult": (2.0,)},
    "nemotron_h": {"pattern": ("ME", "*-", "M*"), **{name: (value,) for name, value in _HYBRID.items()}},
}
PLACES = ("blocks/.*/kernel", "blocks/0/.*/kernel", r"blocks/.*(mlp|mixer)/.*/kernel", r"blocks/.*attn/.*/kernel")
# Kind of weight -> its options, each with what may be drawn. A map stands below all else, and is drawn first.
BELOW: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "map": {"distribution": ("normal", "rademacher", "uniform", "orthogonal_qr"), "trained": (False, True)},
    "crystal": {"form": ("low_rank", "random"), "rank": (1, 2)},
    "lowbit": {"bits": ("ternary", 2, 4)},
}
ABOVE: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "lora": {"rank": (2, 4), "rank_stabilised": (False, True)},
    "dora": {"rank": (2, 4)},
    "vera": {"rank": (4,)},
    "randlora": {"rank": (2,)},
    "gain": {},
    "scalar": {},
    "scale_shift": {},
    "supermask": {"keep": (0.5, 0.8)},
}
RULES = (
    (".*", True),
    (".*", False),
    ("blocks/0/.*", False),
    (r"blocks/.*/(attn|mixer)/.*", False),
    (r"blocks/.*/mlp/.*", False),
    ("blocks/.*/kernel/(a|b|gain|scale)", True),
    ("(tok_emb|pos_emb)/.*", False),
)
MESHES = ((8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 2, 1), (1, 2, 4, 1), (2, 2, 1, 2))  # data, fsdp, tensor, expert
_TRAIN: Mapping[str, Sequence[Any]] = {
    "accumulation": (1, 1, 2),
    "ema_decay": (0.0, 0.0, 0.0, 0.9),
    "compute_dtype": ("float32", "float32", "bfloat16"),
    "remat": (False, False, True),
    "draw_maps": ("per_layer", "per_step", "once"),
    "on_thaw": ("restart", "keep"),
    "restart_schedule": (False, False, False, False, True),
    "restart_optimizer": (False, False, False, False, True),
    "seed": (0, 1),
    "base_seed": (0, 3),
}
_OPTIMIZER: Mapping[str, Sequence[Any]] = {
    "name": ("adamw", "muon"),
    "learning_rate": (1e-3, 5e-3),
    "weight_decay": (0.0, 0.1),
    "clip": (0.0, 1.0),
    "schedule": ("cosine", "linear_warmdown", "constant"),
    "warmup_steps": (0, 2),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run, as data, and a mesh that it is to be the same on."""

    model: Mapping[str, Any]
    train: Mapping[str, Any]
    entries: Sequence[tuple[int, Sequence[tuple[str, bool]]]]
    mesh: tuple[int, ...]
    stop_at: int

    def build(self) -> tuple[Model, TrainConfig, FreezeSchedule]:
        """Raises UserError where its parts do not go together."""
        config = TrainConfig.from_mapping(self.train)
        return models.build(**self.model), config, FreezeSchedule([(at, list(rules)) for at, rules in self.entries])


def draw(seed: int, number: int) -> Run:
    """Run number `number`; not every one can be built."""
    rng = np.random.default_rng([seed, number])
    family = list(FAMILIES)[number % len(FAMILIES)]
    model = {"family": family, **_SIZES, **_one_of_each(rng, FAMILIES[family]), "weights": _weights(rng)}
    model["dropout"] = 0.0 if family == "nemotron_h" else float(rng.choice([0.0, 0.1]))
    optimizer = _one_of_each(rng, _OPTIMIZER)
    train = {"steps": STEPS, "batch_size": 16, "seq_len": SEQ_LEN, "log_every": 1, "eval_every": 1}
    train |= {**_one_of_each(rng, _TRAIN), "optimizer": optimizer}
    starts = [0, *sorted(rng.choice(np.arange(1, STEPS), size=rng.integers(0, 3), replace=False).tolist())]
    entries = [(start, [*_drawn_rules(rng), (".*", True)]) for start in starts]
    mesh = MESHES[rng.integers(len(MESHES))]
    return Run(model, train, entries, mesh, int(rng.integers(1, STEPS)))


def _one_of_each(rng: np.random.Generator, choices: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    return {name: values[rng.integers(len(values))] for name, values in choices.items()}


def _weights(rng: np.random.Generator) -> list[dict[str, Any]]:
    rules = []
    for kinds, chance in ((BELOW, 0.5), (ABOVE, 0.6), (ABOVE, 0.2)):
        if rng.random() < chance:
            kind = list(kinds)[rng.integers(len(kinds))]
            place = PLACES[rng.integers(len(PLACES))]
            rules.append({"pattern": place, "kind": kind, **_one_of_each(rng, kinds[kind])})
    return rules


def _drawn_rules(rng: np.random.Generator) -> list[tuple[str, bool]]:
    return [RULES[at] for at in rng.choice(len(RULES), size=rng.integers(0, 3), replace=False)]
