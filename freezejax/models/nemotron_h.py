"""Nemotron-H: Mamba-2, mixtures of experts, attention and MLPs in any order, one of them a block.

Leaves: `tok_emb/embedding`, `ln_f/scale`, `lm_head/kernel` where untied, per block `norm/scale` and, under `mixer/`:

- M, Mamba-2: `in_proj/kernel`, `conv1d/{filter,bias}`, `dt_bias`, `a_log`, `skip`, `norm/scale`, `out_proj/kernel`;
- E, experts: `router/{kernel,balance}`, `{experts,shared_experts}/{up,down}_proj/kernel`, those of all experts as one
  array [E, in, out]; `latent_{in,out}/kernel` where experts work on fewer dims;
- *, attention: `{q,k,v,o}_proj/kernel`; no positions: order is what Mamba-2 knows;
- -, MLP: `{up,down}_proj/kernel`.

Sources: NVIDIA 2025, arXiv:2504.03624; Nemotron 3 Nano, arXiv:2512.20848.
"""
# ruff: noqa: D107 - what a module is stands in its class docstring

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from freezejax.errors import UserError
from freezejax.models import layers
from freezejax.models.config import check_fields
from freezejax.models.decoder import Decoder
from freezejax.models.experts import MixtureOfExperts, Mlp
from freezejax.models.family import Family, InitRules
from freezejax.models.mamba2 import Mamba2
from freezejax.models.nemotron_h_hub import ATTENTION, EXPERTS, HUB, KINDS, MAMBA, MLP, NAMES
from freezejax.models.state import Keys, State, attend


@dataclass(frozen=True)
class NemotronHConfig:
    """Sizes of a Nemotron-H; a value that no model can have is a UserError that names its field.

    Defaults: Nemotron 3 Nano, 31,577,937,344 parameters and the balance of its experts.

    >>> NemotronHConfig(num_layers=5, pattern="ME").layers
    'MEMEM'
    """

    vocab_size: int = 131072
    num_layers: int = 52
    pattern: str = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"  # blocks by letter, again where it ends
    model_dim: int = 2688
    norm_eps: float = 1e-5
    tied: bool = False  # the head is the embedding
    dropout: float = 0.0  # rate after each block
    init_std: float = 0.02  # of matrices
    # attention
    num_heads: int = 32
    num_kv_heads: int = 2  # divides num_heads
    head_dim: int = 128
    attention_bias: bool = False
    # Mamba-2
    mamba_heads: int = 64
    mamba_head_dim: int = 64
    mamba_groups: int = 8  # heads that share b, c and the statistics of the gated norm; divides mamba_heads
    state_dim: int = 128
    conv_width: int = 4
    conv_bias: bool = True
    mamba_bias: bool = False
    dt_min: float = 0.0  # limits of the step; 0: none
    dt_max: float = 0.0
    chunk: int = 128  # tokens of the scan that are computed at once
    # MLPs and experts
    mlp_width: int = 1856
    mlp_bias: bool = False
    experts: int = 128
    expert_choices: int = 6  # of a token
    expert_width: int = 1856
    shared_expert_width: int = 3712
    latent_dim: int = 0  # experts work on so many dims; 0: on all
    expert_groups: int = 1  # divides experts
    group_choices: int = 1  # of a token, which looks for experts in these groups alone
    shares_add_to_one: bool = True  # before they are scaled
    share_scale: float = 2.5

    def __post_init__(self) -> None:  # noqa: D105
        check_fields(self, may_be_zero=("dt_min", "dt_max", "latent_dim"))
        if not self.pattern or set(self.pattern) - set(KINDS):
            raise UserError(
                f"NemotronHConfig.pattern={self.pattern!r} must be letters of {''.join(KINDS)!r}: "
                "M Mamba-2, E experts, * attention, - MLP"
            )
        for whole, part in (
            ("num_heads", "num_kv_heads"),
            ("mamba_heads", "mamba_groups"),
            ("experts", "expert_groups"),
        ):
            if getattr(self, whole) % getattr(self, part):
                name = f"NemotronHConfig.{part}={getattr(self, part)}"
                raise UserError(f"{name} must divide {whole}={getattr(self, whole)}")
        if self.dt_max and self.dt_max <= self.dt_min:
            raise UserError(f"NemotronHConfig.dt_max={self.dt_max} must be above dt_min={self.dt_min}, or 0: no limit")
        to_choose = self.experts // self.expert_groups * self.group_choices
        if not (self.group_choices <= self.expert_groups and self.expert_choices <= to_choose):
            raise UserError(
                f"NemotronHConfig.expert_choices={self.expert_choices} of {to_choose} experts in "
                f"group_choices={self.group_choices} of expert_groups={self.expert_groups} cannot be"
            )

        if self.group_choices < self.expert_groups == self.experts:
            raise UserError(
                f"NemotronHConfig.expert_groups={self.expert_groups} must leave two experts or more to a group, "
                f"of which there are experts={self.experts}: a group is as good as its two best"
            )

    @property
    def layers(self) -> str:
        """The letter of every block."""
        return "".join(itertools.islice(itertools.cycle(self.pattern), self.num_layers))


class Attention(nnx.Module):
    """Causal self-attention without positions, whose key/value heads each serve several query heads."""

    def __init__(self, config: NemotronHConfig):
        dim, bias, self.head_dim = config.model_dim, config.attention_bias, config.head_dim
        self.q_proj = layers.Linear(dim, config.num_heads * config.head_dim, bias)
        self.k_proj = layers.Linear(dim, config.num_kv_heads * config.head_dim, bias)
        self.v_proj = layers.Linear(dim, config.num_kv_heads * config.head_dim, bias)
        self.o_proj = layers.Linear(config.num_heads * config.head_dim, dim, bias)

    def __call__(self, x_BxTxD: jax.Array, state: State | None) -> tuple[jax.Array, State | None]:
        """[B, T, D] -> [B, T, D]."""
        B, T, _ = x_BxTxD.shape
        q, k, v = (f(x_BxTxD).reshape(B, T, -1, self.head_dim) for f in (self.q_proj, self.k_proj, self.v_proj))
        attended, state = attend(q, k, v, state)
        return self.o_proj(attended.reshape(B, T, -1)), state


_MIXERS: Mapping[str, Callable[[NemotronHConfig], nnx.Module]] = {
    MAMBA: Mamba2,
    EXPERTS: MixtureOfExperts,
    ATTENTION: Attention,
    MLP: lambda config: Mlp(config.model_dim, config.mlp_width, config.mlp_bias),
}


class Block(nnx.Module):
    """`x + mixer(norm(x))`."""

    def __init__(self, config: NemotronHConfig, letter: str):
        self.letter, self.rate = letter, config.dropout
        self.norm = layers.RMSNorm(config.model_dim, config.norm_eps)
        self.mixer: Any = _MIXERS[letter](config)

    def __call__(
        self, x: jax.Array, state: State | None, dropout_key: jax.Array | None
    ) -> tuple[jax.Array, State | None]:
        """[B, T, D] -> [B, T, D]."""
        if self.letter in (MAMBA, ATTENTION):
            mixed, state = self.mixer(self.norm(x), state)
        else:
            mixed = self.mixer(self.norm(x))
        return x + layers.dropout(mixed, self.rate, dropout_key), state


class NemotronH(Decoder):
    """Embedding, blocks, final norm, head."""

    def __init__(self, config: NemotronHConfig):
        blocks = [Block(config, letter) for letter in config.layers]
        super().__init__(config, layers.RMSNorm(config.model_dim, config.norm_eps), blocks)

    def keeps(self, i: int, batch: int, length: int, dtype: DTypeLike) -> Any:
        """Keys and values of attention, the state of Mamba-2, and nothing of other blocks."""
        c = self.config
        if c.layers[i] == MAMBA:
            return self.blocks[i].mixer.empty(batch, dtype)
        return Keys.empty(batch, length, c.num_kv_heads, c.head_dim, dtype) if c.layers[i] == ATTENTION else ()


def _init_rules(config: NemotronHConfig) -> InitRules:
    into_stream = config.init_std / config.num_layers**0.5  # one addition a block
    return [
        (r".*/(scale|skip)", initializers.ones),
        (r".*/(bias|balance)", initializers.zeros),
        (r".*/a_log", _log_rates),
        (r".*/dt_bias", _steps),
        (r".*/conv1d/filter", initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=(0, 1))),
        (r"blocks/.*/(out|o|down)_proj/kernel", initializers.normal(into_stream)),
        (r".*/(kernel|embedding)", initializers.normal(config.init_std)),
    ]


def _log_rates(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Rates of 1 to 16, as in Mamba-2."""
    return jnp.log(_apart(jax.random.uniform(key, shape, dtype, 1.0, 16.0)))


def _steps(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """What softplus makes a step of 0.001 to 0.1, even in its logarithm."""
    step = _apart(jnp.exp(_apart(jax.random.uniform(key, shape, dtype, jnp.log(0.001), jnp.log(0.1)))))
    return step + _apart(jnp.log(_apart(-jnp.expm1(-step))))


# One operation of a chain is computed apart from the next: fused they round differently, and the first weights would
# depend on the program that draws them, so on the mesh.
_apart = jax.lax.optimization_barrier


FAMILY = Family(
    config=NemotronHConfig,
    module=NemotronH,
    init_rules=_init_rules,
    names=NAMES,
    # Columns of what reads the residual stream, rows of what writes to it; the parts of Mamba-2's `in_proj` are not of
    # one size, so that it is not cut into columns. Over `expert` each device keeps its own experts.
    sharding=[
        (r".*/experts/up_proj/kernel", P("expert", "fsdp", "tensor")),
        (r".*/experts/down_proj/kernel", P("expert", "tensor", "fsdp")),
        (r".*/(q|k|v|up)_proj/kernel", P("fsdp", "tensor")),
        (r".*/(o|down)_proj/kernel", P("tensor", "fsdp")),
        (r".*/in_proj/kernel", P("fsdp", None)),
        (r".*/out_proj/kernel", P(None, "fsdp")),
        (r"lm_head/kernel", P("fsdp", "tensor")),
        (r"tok_emb/embedding", P("fsdp", None)),
    ],
    hub=HUB,
)
