"""Folders that we write, the same bytes every time: `python -m tests.models.saved DIR`, for other libraries to read."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from freezejax import models
from freezejax.models import Model
from freezejax.paths import PyTree, map_with_paths

TOKENS = np.arange(12, dtype=np.int32).reshape(2, 6) * 5 % 17
SIZES: dict[str, Any] = {"vocab_size": 17, "num_layers": 2, "model_dim": 16, "num_heads": 4}
ROPE: dict[str, Any] = {"rope_scaling": "llama3", "rope_factor": 4.0, "rope_original_positions": 8}
CASES: dict[str, dict[str, Any]] = {
    "gpt2": {"family": "gpt2", **SIZES, "positions": 16},
    "gpt2_untied": {"family": "gpt2", **SIZES, "positions": 16, "tied": False, "mlp_mult": 3},
    "llama": {"family": "llama", **SIZES, "num_kv_heads": 2, "head_dim": 4, "mlp_mult": 2},
    "llama_3": {
        **{"family": "llama", **SIZES, "num_kv_heads": 2, "head_dim": 8, "mlp_mult": 2, "tied": False},
        **{"attention_bias": True, "mlp_bias": True, "rope_base": 500.0, **ROPE},
    },
    "llama_linear": {
        **{"family": "llama", **SIZES, "num_kv_heads": 4, "head_dim": 4, "mlp_mult": 2},
        **{"rope_scaling": "linear", "rope_factor": 2.0},
    },
    "llama_tied": {"family": "llama", **SIZES, "num_kv_heads": 1, "head_dim": 8, "mlp_mult": 3, "tied": True},
    "nemotron_h": {
        **{"family": "nemotron_h", **SIZES, "num_layers": 5, "pattern": "ME*-M", "num_kv_heads": 2, "head_dim": 8},
        **{"mamba_heads": 4, "mamba_head_dim": 6, "mamba_groups": 2, "state_dim": 5, "chunk": 4, "mlp_width": 24},
        **{"experts": 6, "expert_choices": 3, "expert_width": 12, "shared_expert_width": 12, "share_scale": 1.5},
        **{"expert_groups": 3, "group_choices": 2},
    },
}
LORA = [{"pattern": r"blocks/\d+/attn/(q|v)_proj/kernel", "kind": "lora", "rank": 2, "alpha": 3.0}]


def numbers(params: PyTree) -> PyTree:
    """Numbers that are exact in float32 and the same everywhere, for every leaf another stream."""

    def draw(path: str, leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        drawn = np.random.default_rng([*path.removesuffix("/base").encode()]).integers(-1024, 1024, leaf.shape)
        return jnp.asarray(drawn / 4096 + path.endswith("scale"), jnp.float32)

    return map_with_paths(draw, params)


def made(name: str, **changes: Any) -> tuple[Model, PyTree]:
    """A model of `CASES` and its numbers."""
    model = models.build(**{**CASES[name], **changes})
    return model, numbers(model.init(jax.random.key(0)))


def write(folder: Path) -> None:
    """Every case, and an adapter over one of them."""
    for name in CASES:
        models.save_pretrained(folder / name, *made(name))
    model, params = made("llama", weights=LORA)
    models.save_adapter(folder / "lora_over_llama", model, params)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
