"""Nemotron-H as transformers has it on disk: config.json, and the names of tensors."""

from collections.abc import Mapping
from typing import Any

from freezejax.errors import UserError
from freezejax.models.family import Hub

MAMBA, EXPERTS, ATTENTION, MLP = KINDS = ("M", "E", "*", "-")  # of blocks
_WORDS = {  # of config.json's layers_block_type, and what older ones are called
    "linear_attention": MAMBA,
    "moe": EXPERTS,
    "full_attention": ATTENTION,
    "mlp": MLP,
    "mamba": MAMBA,
    "attention": ATTENTION,
}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    words = config.get("layers_block_type")
    unknown = [word for word in words or () if word not in _WORDS]
    if unknown:
        raise UserError(f"layers_block_type has {unknown[0]!r}; known: {', '.join(_WORDS)}")
    low, high = (_number(limit) for limit in config.get("time_step_limit") or (0.0, float("inf")))
    pattern = "".join(map(_WORDS.__getitem__, words)) if words else config["hybrid_override_pattern"]
    return {
        "num_layers": len(pattern),
        "pattern": pattern,
        "head_dim": config["attention_head_dim"] if "attention_head_dim" in config else config["head_dim"],
        "latent_dim": config.get("moe_latent_size") or 0,
        "dt_min": low,
        "dt_max": 0.0 if high == float("inf") else high,
    }


def _number(value: Any) -> float:
    """A number of config.json, which cannot say infinity: some write Infinity, some {"__float__": "Infinity"}."""
    return float(value["__float__"] if isinstance(value, Mapping) else value)


def _write(config: Any) -> dict[str, Any]:
    words = {letter: word for word, letter in reversed(_WORDS.items())}
    return {
        "layers_block_type": [words[letter] for letter in config.layers],
        "head_dim": config.head_dim,
        "moe_latent_size": config.latent_dim or None,
        "time_step_limit": [config.dt_min, config.dt_max or {"__float__": "Infinity"}],
    }


_OF_MIXER = [  # our name, theirs, transposed there
    (r"conv1d/filter", r"conv1d/weight", True),
    (r"a_log", r"A_log", False),
    (r"skip", r"D", False),
    (r"norm/scale", r"norm/weight", False),
    (r"router/kernel", r"gate/weight", True),
    (r"router/balance", r"gate/e_score_correction_bias", False),
    (r"experts/(up|down)_proj/kernel", r"experts/*/\2_proj/weight", True),
    (r"latent_in/kernel", r"fc1_latent_proj/weight", True),
    (r"latent_out/kernel", r"fc2_latent_proj/weight", True),
    (r"latent_in/bias", r"fc1_latent_proj/bias", False),
    (r"latent_out/bias", r"fc2_latent_proj/bias", False),
    (r"(.*)/kernel", r"\2/weight", True),
    (r"(.*)", r"\2", False),
]

NAMES = [
    (r"tok_emb/embedding", r"backbone/embeddings/weight", False),
    (r"lm_head/kernel", r"lm_head/weight", True),
    (r"ln_f/scale", r"backbone/norm_f/weight", False),
    (r"blocks/(\d+)/norm/scale", r"backbone/layers/\1/norm/weight", False),
    *((rf"blocks/(\d+)/mixer/{ours}", rf"backbone/layers/\1/mixer/{theirs}", t) for ours, theirs, t in _OF_MIXER),
]

HUB = Hub(
    architecture="NemotronHForCausalLM",
    model_type="nemotron_h",
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "model_dim",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tied",
        "initializer_range": "init_std",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "attention_bias": "attention_bias",
        "mamba_num_heads": "mamba_heads",
        "mamba_head_dim": "mamba_head_dim",
        "n_groups": "mamba_groups",
        "ssm_state_size": "state_dim",
        "conv_kernel": "conv_width",
        "use_conv_bias": "conv_bias",
        "use_bias": "mamba_bias",
        "chunk_size": "chunk",
        "intermediate_size": "mlp_width",
        "mlp_bias": "mlp_bias",
        "n_routed_experts": "experts",
        "num_experts_per_tok": "expert_choices",
        "moe_intermediate_size": "expert_width",
        "moe_shared_expert_intermediate_size": "shared_expert_width",
        "n_group": "expert_groups",
        "topk_group": "group_choices",
        "norm_topk_prob": "shares_add_to_one",
        "routed_scaling_factor": "share_scale",
    },
    fixed={"mlp_hidden_act": "relu2", "mamba_hidden_act": "silu", "n_shared_experts": 1, "sliding_window": None},
    read=_read,
    write=_write,
    prefix="backbone.",
    ignored=r"mtp\..*",  # heads that predict several tokens
    replaced=("attention_head_dim", "hybrid_override_pattern"),
)
