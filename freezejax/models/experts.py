"""A mixture of experts: a router that sends every token to a few of many MLPs, beside one that all tokens pass."""
# ruff: noqa: D107 - what a module is stands in its class docstring

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from freezejax.models import layers
from freezejax.models.grouped import Matrices, blocks, grouped
from freezejax.sharding import BATCH, ShardedKernel, used_spec
from freezejax.weights.stack import matrices


class Mlp(nnx.Module):
    """`down_proj(relu(up_proj(x))^2)`. Source: So et al. 2021, arXiv:2109.08668."""

    def __init__(self, dim: int, width: int, bias: bool):
        self.up_proj = layers.Linear(dim, width, bias)
        self.down_proj = layers.Linear(width, dim, bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        return self.down_proj(jnp.square(jax.nn.relu(self.up_proj(x))))


class Router(nnx.Module):
    """How well each expert suits a token: logits, of which `chosen` makes a choice; `balance` [E] has a part in it."""

    def __init__(self, config: Any):
        self.kernel = layers.parameter(config.model_dim, config.experts)
        self.balance = layers.parameter(config.experts)

    def __call__(self, x_NxD: jax.Array) -> jax.Array:
        """[N, D] -> float32 [N, E], whatever the rest is in: a token that is sent elsewhere is another model."""
        return layers.linear(x_NxD.astype(jnp.float32), self.kernel.get_value())


def chosen(config: Any, logits_NxE: jax.Array, balance_E: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which experts a token is sent to, int32 [N, k], and how much each of them counts, float32 [N, k].

    A token's affinity to an expert is the sigmoid of a logit. The largest `config.expert_choices` count, by affinity
    plus `balance`: what is added there steers loads during pretraining, and has no gradient. With groups of experts
    only the best groups are looked at, a group being as good as its two best experts. Source: DeepSeek-V3,
    arXiv:2412.19437, section 2.1.2; Wang et al. 2024, arXiv:2408.15664.
    """
    affinity_NxE = jax.nn.sigmoid(logits_NxE)
    choice_NxE = jax.lax.stop_gradient(affinity_NxE + balance_E.astype(jnp.float32)[None])
    open_NxE = _of_best_groups(choice_NxE, config.expert_groups, config.group_choices)
    _, expert_Nxk = jax.lax.top_k(open_NxE, config.expert_choices)
    share_Nxk = jnp.take_along_axis(affinity_NxE, expert_Nxk, axis=1)
    if config.shares_add_to_one:
        share_Nxk = share_Nxk / (share_Nxk.sum(axis=1, keepdims=True) + 1e-20)
    return expert_Nxk, share_Nxk * config.share_scale


def _of_best_groups(choice_NxE: jax.Array, groups: int, best: int) -> jax.Array:
    """What counts for each expert, 0 for those of groups that are not among the best."""
    if groups == best:
        return choice_NxE
    by_group = choice_NxE.reshape(len(choice_NxE), groups, -1)
    best_NxG = jax.lax.top_k(by_group, 2)[0].sum(axis=-1)
    least_Nx1 = jax.lax.top_k(best_NxG, best)[0][:, -1:]
    return jnp.where((best_NxG >= least_Nx1)[..., None], by_group, 0).reshape(choice_NxE.shape)


class Stack(nnx.Module):
    """One matrix for each of so many experts: `kernel` [E, in, out]."""

    def __init__(self, experts: int, width_in: int, width_out: int):
        self.kernel = layers.parameter(experts, width_in, width_out)


class Experts(nnx.Module):
    """The MLPs of all experts; no token is dropped, and none is multiplied with an expert that is not its own."""

    def __init__(self, config: Any):
        self.config, dim = config, config.latent_dim or config.model_dim
        self.up_proj = Stack(config.experts, dim, config.expert_width)
        self.down_proj = Stack(config.experts, config.expert_width, dim)

    def __call__(self, x_NxD: jax.Array, logits_NxE: jax.Array, balance_E: jax.Array) -> jax.Array:
        """The sum over each token's experts of share times MLP: [N, D] -> [N, D]."""
        up, down = (stack.kernel.get_value() for stack in (self.up_proj, self.down_proj))
        compute: Callable[..., jax.Array] = functools.partial(_sum_of_experts, self.config)
        if isinstance(up, ShardedKernel) and isinstance(down, ShardedKernel):
            compute = _on_mesh(compute, up.stored, down.stored)
        return compute(x_NxD, logits_NxE, balance_E, matrices(up), matrices(down))


def _sum_of_experts(
    config: Any,
    x_NxD: jax.Array,
    logits_NxE: jax.Array,
    balance_E: jax.Array,
    up_ExDxW: Matrices,
    down_ExWxD: Matrices,
    first: jax.Array | int = 0,
) -> jax.Array:
    """With kernels of the experts from number `first` on: what these give."""
    expert_Nxk, share_Nxk = chosen(config, logits_NxE, balance_E)
    (N, k), here = expert_Nxk.shape, len(up_ExDxW)
    place_M = expert_Nxk.reshape(-1) - first
    sent = blocks(jnp.where((place_M >= 0) & (place_M < here), place_M, here), here)
    x = sent.put(jnp.repeat(x_NxD, k, axis=0))
    hidden = jnp.square(jax.nn.relu(grouped(x, up_ExDxW, sent.group_K)))
    y_NxkxD = sent.taken(grouped(hidden, down_ExWxD, sent.group_K)).reshape(N, k, -1)
    return jnp.einsum("nkd,nk->nd", y_NxkxD, share_Nxk.astype(y_NxkxD.dtype))


def _on_mesh(compute: Callable[..., jax.Array], up: NamedSharding, down: NamedSharding) -> Callable[..., jax.Array]:
    """Every device chooses for its own tokens and sorts them, with all experts at hand, or a share of their width.

    Over the axis `expert` each keeps its own experts: it gets the tokens of all, and gives back what its experts make.
    """
    kernels, rows = [used_spec(stored.spec) for stored in (up, down)], P(BATCH)
    apart, spread = (axis in kernels[0] and up.mesh.shape[axis] > 1 for axis in ("tensor", "expert"))

    def local(x_NxD: jax.Array, logits_NxE: jax.Array, balance_E: jax.Array, *own: jax.Array) -> jax.Array:
        if not spread:
            y_NxD = compute(x_NxD, logits_NxE, balance_E, *own)
            return jax.lax.psum(y_NxD, "tensor") if apart else y_NxD
        x_NxD, logits_NxE = (jax.lax.all_gather(part, "expert", tiled=True) for part in (x_NxD, logits_NxE))
        y_NxD = compute(x_NxD, logits_NxE, balance_E, *own, first=jax.lax.axis_index("expert") * len(own[0]))
        y_NxD = jax.lax.psum(y_NxD, "tensor") if apart else y_NxD
        return jax.lax.psum_scatter(y_NxD, "expert", tiled=True)

    specs = (rows, rows, P(), *kernels)
    return jax.shard_map(local, mesh=up.mesh, in_specs=specs, out_specs=rows, check_vma=False)


class MixtureOfExperts(nnx.Module):
    """Routed experts beside one shared by all; routed ones may work on fewer dims (`config.latent_dim`)."""

    def __init__(self, config: Any):
        dim, latent, bias = config.model_dim, config.latent_dim, config.mlp_bias
        self.router = Router(config)
        self.experts = Experts(config)
        self.shared_experts = Mlp(dim, config.shared_expert_width, bias)
        if latent:
            self.latent_in = layers.Linear(dim, latent, bias)
            self.latent_out = layers.Linear(latent, dim, bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        x_NxD = x.reshape(-1, x.shape[-1])
        how = self.router(x_NxD), self.router.balance[...]
        if hasattr(self, "latent_in"):
            routed = self.latent_out(self.experts(self.latent_in(x_NxD), *how))
        else:
            routed = self.experts(x_NxD, *how)
        return routed.reshape(x.shape) + self.shared_experts(x)
