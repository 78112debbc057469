"""Where a model computes: its sites in forward order, as data, and which of them need a gradient."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from freezejax.cost.layout import ONE_DEVICE, MeshShape
from freezejax.errors import UserError
from freezejax.models import GegluConfig, ParameterGolfConfig
from freezejax.models.config import mlp_width
from freezejax.paths import PyTree
from freezejax.weights import GainWeight, MapWeight
from freezejax.weights.lora import LoraWeight


@dataclasses.dataclass(frozen=True)
class Site:
    """One place where a model computes something for every token.

    >>> Site("norm", (0,), 192, "blocks/0/ln1/scale", block=0).inner
    0
    """

    kind: str  # embed, norm, linear, map, attention, ...: what is computed, see the tables of costs
    inputs: tuple[int, ...]  # indices of the sites whose outputs it reads
    width: int  # elements of its output per token
    leaf: str = ""  # path of the parameter it reads, if any
    inner: int = 0  # of matmuls: elements of its input per token
    heads: int = 0  # of attention: query heads
    block: int = -1  # layer it belongs to: -1 before the first, the number of layers after the last
    draw: str = ""  # of maps: the distribution
    shared: bool = False  # whether the devices of the mesh axis `tensor` share its output, each having a part
    shared_input: bool = False  # of matmuls: whether they share its input


@dataclasses.dataclass(frozen=True)
class Live:
    """What the backward pass of one site has to compute: nothing that no trainable leaf depends on.

    >>> Live(leaf=False, inputs=(True,)).any
    True
    """

    leaf: bool  # the gradient of its parameter
    inputs: tuple[bool, ...]  # the gradient of each input

    @property
    def any(self) -> bool:
        """Whether the site has a backward pass at all."""
        return self.leaf or any(self.inputs)


def liveness(sites: Sequence[Site], trains: Mapping[str, bool]) -> list[Live]:
    """For every site, which gradients are computed: reverse-mode differentiation of the trainable half.

    Args:
      sites: in forward order.
      trains: leaf path -> whether it trains.

    >>> chain = [Site("embed", (), 4, "e"), Site("linear", (0,), 4, "a"), Site("linear", (1,), 4, "b")]
    >>> [live.any for live in liveness(chain, {"e": False, "a": False, "b": True})]
    [False, False, True]
    """
    found: list[Live] = []
    for site in sites:
        found.append(Live(trains.get(site.leaf, False), tuple(found[i].any for i in site.inputs)))
    return found


def sites_of(config: Any, params: PyTree, mesh: MeshShape = ONE_DEVICE) -> tuple[Site, ...]:
    """The sites of a model.

    Args:
      config: the model's config, of either family.
      params: its parameters, as shapes; they say which kernels are maps or carry adapters.
      mesh: what the sites are laid out over.

    Raises:
      UserError: a model of another family.

    >>> from freezejax import models
    >>> import jax
    >>> model = models.build("geglu", num_layers=1, model_dim=32, num_heads=2)
    >>> sites = sites_of(model.config, jax.eval_shape(model.init, jax.random.key(0)))
    >>> [site.kind for site in sites][:6]
    ['embed', 'norm', 'linear', 'split', 'rotary', 'attention']
    """
    if isinstance(config, GegluConfig):
        return _geglu(config, _Chain(params, mesh))
    if isinstance(config, ParameterGolfConfig):
        return _parameter_golf(config, _Chain(params, mesh))
    raise UserError(f"cost: no sites are known for a model of config {type(config).__name__}; use models.build")


class _Chain:
    """Collects sites in forward order."""

    def __init__(self, params: PyTree, mesh: MeshShape) -> None:
        self.params, self.mesh, self.sites, self.block = params, mesh, list[Site](), -1

    def add(self, kind: str, inputs: Sequence[int], width: int, leaf: str = "", **more: Any) -> int:
        more.setdefault("shared", any(self.sites[i].shared for i in inputs))
        self.sites.append(Site(kind, tuple(inputs), width, leaf, block=self.block, **more))
        return len(self.sites) - 1

    def linear(self, x: int, path: str, out: int) -> int:
        """Whatever stands at `path`: an array, a map, an adapter over either."""
        weight = self.params
        for name in path.split("/"):
            weight = weight[int(name) if name.isdigit() else name]
        return self._weight(x, weight, path, out)

    def _weight(self, x: int, weight: Any, path: str, out: int) -> int:
        if isinstance(weight, LoraWeight):
            low = self._matmul("linear", x, f"{path}/a", weight.a.shape[1])
            low = self._matmul("linear", low, f"{path}/b", out)
            return self.add("adapter", [self._weight(x, weight.base, f"{path}/base", out), low], out)
        if isinstance(weight, GainWeight):
            y = self._weight(x, weight.base, f"{path}/base", out)
            return self.add("scale", [y], out, f"{path}/gain")
        if isinstance(weight, MapWeight):
            y = self._matmul("map", x, path, out, draw=weight.map.distribution)
            return y
        return self._matmul("linear", x, path, out)

    def _matmul(self, kind: str, x: int, path: str, out: int, **more: Any) -> int:
        inner = self.sites[x].width
        spec = [*self.mesh.spec(path, (inner, out)), None, None]
        split = self.mesh.tensor > 1
        sharing = {"shared": split and spec[1] == "tensor", "shared_input": split and spec[0] == "tensor"}
        return self.add(kind, [x], out, path, inner=inner, **sharing, **more)

    def head(self, x: int, config: Any) -> None:
        self.block = config.num_layers
        self.add("head", [x], config.vocab_size, "tok_emb/embedding", inner=config.model_dim)


def _geglu(c: GegluConfig, chain: _Chain) -> tuple[Site, ...]:
    dim, hidden = c.model_dim, mlp_width(c)
    x = chain.add("embed", [], dim, "tok_emb/embedding")
    for i in range(c.num_layers):
        chain.block, block = i, f"blocks/{i}"
        normed = chain.add("norm", [x], dim, f"{block}/ln1/scale")
        names = ("q", "k", "v") if c.separate_qkv else ("qkv",)
        widths = (dim,) * 3 if c.separate_qkv else (3 * dim,)
        parts = [
            chain.linear(normed, f"{block}/attn/{name}/kernel", width)
            for name, width in zip(names, widths, strict=True)
        ]
        # One concatenation: where one of q, k, v has a gradient, all are computed.
        joined = chain.add("split", parts, 3 * dim)
        rotated = chain.add("rotary", [joined], 2 * dim)
        mixed = chain.add("attention", [rotated, rotated, joined], dim, heads=c.num_heads)
        x = _branch(chain, x, chain.linear(mixed, f"{block}/attn/out/kernel", dim), c.dropout)
        normed = chain.add("norm", [x], dim, f"{block}/ln2/scale")
        gate, up = (chain.linear(normed, f"{block}/mlp/{name}/kernel", hidden) for name in ("gate", "up"))
        gated = chain.add("geglu", [gate, up], hidden)
        x = _branch(chain, x, chain.linear(gated, f"{block}/mlp/down/kernel", dim), c.dropout)
    chain.head(chain.add("norm", [x], dim, "ln_f/scale"), c)
    chain.add("cross_entropy", [len(chain.sites) - 1], c.vocab_size)
    return tuple(chain.sites)


def _branch(chain: _Chain, x: int, y: int, dropout: float) -> int:
    """Residual: `x + dropout(y)`."""
    width = chain.sites[x].width
    y = chain.add("dropout", [y], width) if dropout else y
    return chain.add("add", [x, y], width)


def _parameter_golf(c: ParameterGolfConfig, chain: _Chain) -> tuple[Site, ...]:
    dim, hidden = c.model_dim, mlp_width(c)
    key_dim, skips = c.num_kv_heads * (dim // c.num_heads), c.num_layers // 2
    x = x0 = chain.add("norm", [chain.add("embed", [], dim, "tok_emb/embedding")], dim)
    pushed: list[int] = []
    for i in range(c.num_layers):
        chain.block, block = i, f"blocks/{i}"
        if i >= skips and pushed:
            x = chain.add("skip", [x, pushed.pop()], dim, "skip_weights")
        x = chain.add("mix", [x, x0], dim, f"{block}/resid_mix")
        normed = chain.add("norm", [x], dim)
        q, k, v = (
            chain.linear(normed, f"{block}/attn/{name}/kernel", width)
            for name, width in (("c_q", dim), ("c_k", key_dim), ("c_v", key_dim))
        )
        q, k = (
            chain.add("rotary", [chain.add("norm", [h], chain.sites[h].width)], chain.sites[h].width) for h in (q, k)
        )
        q = chain.add("scale", [q], dim, f"{block}/attn/q_gain")
        mixed = chain.add("attention", [q, k, v], dim, heads=c.num_heads)
        y = chain.linear(mixed, f"{block}/attn/proj/kernel", dim)
        x = _branch(chain, x, chain.add("scale", [y], dim, f"{block}/attn_scale"), c.dropout)
        hidden_site = chain.linear(chain.add("norm", [x], dim), f"{block}/mlp/fc/kernel", hidden)
        y = chain.linear(chain.add("relu2", [hidden_site], hidden), f"{block}/mlp/proj/kernel", dim)
        x = _branch(chain, x, chain.add("scale", [y], dim, f"{block}/mlp_scale"), c.dropout)
        if i < skips:
            pushed.append(x)
    normed = chain.add("norm", [x], dim)
    chain.head(normed, c)
    logits = chain.add("softcap", [len(chain.sites) - 1], c.vocab_size)
    chain.add("cross_entropy", [logits], c.vocab_size)
    return tuple(chain.sites)
