"""An ensemble: several models as one, whose parameters hold theirs.

Leaves: those of member i, as they are alone, under `members/i/`, and `mix`, float32 [k]. Softmax of `mix` weighs the
members: zeros, as it starts, give the plain mean. Learned weights are `mix` trained with all else frozen.
"""
# ruff: noqa: D107 - what a module is stands in its class docstring

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.typing import DTypeLike

from freezejax.errors import UserError
from freezejax.models import layers
from freezejax.models.base import Model, build
from freezejax.models.family import Family, Params
from freezejax.models.state import State
from freezejax.ties import moved

Combine = Literal["logits", "probabilities"]


@dataclass(frozen=True)
class EnsembleConfig:
    """Which models, and the mean of what; a value that no ensemble can have is a UserError that names it.

    >>> small = {"family": "geglu", "model_dim": 64, "num_heads": 4}
    >>> EnsembleConfig(members=[{**small, "num_layers": 2}, {**small, "num_layers": 3}]).num_layers
    3
    """

    members: Sequence[Mapping[str, Any]]  # as for `models.build`, of any family, depth and width, and one vocab_size
    combine: Combine = "logits"

    def __post_init__(self) -> None:  # noqa: D105
        if isinstance(self.members, str | Mapping) or not isinstance(self.members, Sequence) or not self.members:
            raise UserError("EnsembleConfig.members must be a list of models such as {'family': 'geglu', ...}")
        if self.combine not in get_args(Combine):
            raise UserError(f"EnsembleConfig.combine={self.combine!r} must be {' or '.join(get_args(Combine))}")
        sizes = [model.config.vocab_size for model in self.models]
        for index, size in enumerate(sizes):
            if size != sizes[0]:
                told = f"members[{index}] has vocab_size={size}, members[0] {sizes[0]}"
                raise UserError(f"{told}: an ensemble is of models over the same tokens")

    @functools.cached_property
    def models(self) -> list[Model]:
        """The members."""
        return [_member(f"members[{index}]", member) for index, member in enumerate(self.members)]

    @property
    def vocab_size(self) -> int:
        """That of every member."""
        return self.models[0].config.vocab_size

    @property
    def num_layers(self) -> int:
        """That of the deepest member."""
        return max(model.config.num_layers for model in self.models)


def _member(where: str, config: Any) -> Model:
    if not isinstance(config, Mapping) or "family" not in config:
        raise UserError(f"{where}={config!r} must name its family and config, such as {{'family': 'geglu'}}")
    try:
        return build(**config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


class Ensemble(nnx.Module):
    """The streams of all members side by side; a member whose blocks have all run waits for the others."""

    def __init__(self, config: EnsembleConfig):
        self.combine = config.combine
        self.depths = tuple(model.config.num_layers for model in config.models)
        self.members: Any = nnx.List([model.family.module(model.config) for model in config.models])
        self.mix = layers.parameter(len(config.models))

    def embed(self, tokens_BxT: jax.Array, dtype: DTypeLike, positions_BxT: jax.Array | None = None) -> list[Any]:
        """Tokens [B, T] -> the stream of each member."""
        places = [] if positions_BxT is None else [positions_BxT]
        return [member.embed(tokens_BxT, dtype, *places) for member in self.members]

    def block(
        self, i: int, streams: list[Any], state: State | None, dropout_key: jax.Array | None
    ) -> tuple[list[Any], State | None]:
        """Block i of every member that has one."""

        def one(index: int) -> tuple[Any, State | None]:
            own = None if state is None else state._replace(kept=state.kept[index])
            if i >= self.depths[index]:
                return streams[index], own
            key = layers.named(dropout_key, f"members/{index}")
            return self.members[index].block(i, streams[index], own, key)

        done = [one(index) for index in range(len(self.depths))]
        left = None if state is None else state._replace(kept=[own.kept for _, own in done if own is not None])
        return [stream for stream, _ in done], left

    def keeps(self, i: int, batch: int, length: int, dtype: DTypeLike) -> list[Any]:
        """What block i of every member keeps; None of a member that has none."""
        pairs = zip(self.depths, self.members, strict=True)
        return [member.keeps(i, batch, length, dtype) if i < depth else None for depth, member in pairs]

    def head(self, streams: list[Any], targets_BxT: jax.Array | None) -> jax.Array:
        """Float32 logits [B, T, V], or the targets' negative log likelihoods [B, T].

        Of the logits of all members the backward pass keeps none: they are computed again.
        """
        mix_k = self.mix[...].astype(jnp.float32)
        if self.combine == "logits":

            def mean(streams: list[Any]) -> jax.Array:
                weights_k, pairs = jax.nn.softmax(mix_k), zip(self.members, streams, strict=True)
                shares = (weights_k[i] * member.head(stream, None) for i, (member, stream) in enumerate(pairs))
                return functools.reduce(jnp.add, shares)

            return layers.head(mean if targets_BxT is None else jax.checkpoint(mean), streams, targets_BxT)
        # The probability of a target needs no more than the targets' likelihoods under every member.
        log_k = jax.nn.log_softmax(mix_k)

        def log_share(index: int) -> jax.Array:
            found = self.members[index].head(streams[index], targets_BxT)
            return log_k[index] + (jax.nn.log_softmax(found) if targets_BxT is None else -found)

        total = functools.reduce(jnp.logaddexp, map(log_share, range(len(self.depths))))
        return total if targets_BxT is None else -total


def join(members: Sequence[Params]) -> Params:
    """The parameters of an ensemble from those of its members, which become one tree and are not copied; equal weights.

    >>> sorted(join([{"w": jnp.ones(2)}, {"w": jnp.zeros(2)}]))
    ['members', 'mix']
    """
    placed = {index: moved(params, f"members/{index}") for index, params in enumerate(members)}
    return {"members": placed, "mix": jnp.zeros(len(members), jnp.float32)}


FAMILY = Family(
    config=EnsembleConfig,
    module=Ensemble,
    init_rules=lambda config: [("mix", initializers.zeros)],
    names=(),
    sharding=(),
    parts=lambda config: {"members": config.models},
)
