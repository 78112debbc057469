"""How a model lies on a mesh of devices: one table of path patterns, and what a layer does with its shard.

A kernel is stored in shards over `fsdp` and `tensor`. Where it is used it is gathered over `fsdp`, in the forward
pass and again in the backward pass; the gradient of a trainable one is summed over the axes of the batch and kept as a
shard. The experts of a mixture are dealt out over `expert` and stay there. A frozen kernel has no gradient. A random
map is drawn where it is needed: never gathered.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from freezejax import roles
from freezejax.errors import UserError
from freezejax.paths import PyTree, map_with_paths
from freezejax.roles import Leaf, Role
from freezejax.ties import untie

AXES = ("data", "fsdp", "expert", "tensor")
BATCH = ("data", "fsdp", "expert")  # axes that split the rows of a batch

# Of a model family: patterns of kernel paths (of a leaf that is part of no kernel: its own path); the first match wins.
Rules = Sequence[tuple[str, P]]
_IN_SHARDS = (Role.KERNEL, Role.HEAD, Role.CODED, Role.EMBEDDING, Role.DRAWN)  # all else lies whole on every device


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, expert: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Mesh of the axes data, fsdp, expert and tensor over all devices; -1 is what the others leave.

    Raises:
      UserError: the sizes do not multiply to the number of devices, naming the field.

    >>> make_mesh().shape
    OrderedDict({'data': 1, 'fsdp': 1, 'expert': 1, 'tensor': 1})
    """
    if devices is None:  # process after process, so that each has whole rows of the batch
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    sizes = {"data": data, "fsdp": fsdp, "expert": expert, "tensor": tensor}
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            raise UserError(f"train.mesh.{axis}={size}: expected 1 or more, or -1 for what the others leave")
    known = math.prod(size for size in sizes.values() if size != -1)
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise UserError(f"train.mesh.{open_axes[1]}=-1: only one axis can be what the others leave")
    if len(devices) % known if open_axes else known != len(devices):
        product = " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size != -1)
        is_not = "does not divide" if open_axes else "is not"
        raise UserError(f"train.mesh: {product} {is_not} the {len(devices)} devices")
    if open_axes:
        sizes[open_axes[0]] = len(devices) // known
    # Not jax.make_mesh: it knows no devices of a topology description, and its axes are Explicit by default.
    return Mesh(np.array(devices).reshape(tuple(sizes.values())), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def spec_of(kernel: str, shape: Sequence[int], mesh: Mesh, rules: Rules) -> P:
    """How a matrix is stored: its rule, less the axes that do not divide its shape; whole where none matches.

    >>> spec_of("blocks/0/mlp/up/kernel", (4, 6), make_mesh(), [(".*/kernel", P("fsdp", "tensor"))])
    P('fsdp', 'tensor')
    """
    spec = next((spec for pattern, spec in rules if re.fullmatch(pattern, kernel)), P())
    if len(spec) > len(shape):
        return P()
    sizes = [1 if axis is None else mesh.shape[axis] for axis in spec]
    return P(*(axis if size % ways == 0 else None for axis, size, ways in zip(spec, shape, sizes, strict=False)))


def used_spec(spec: P) -> P:
    """How a leaf stored as `spec` lies while it is used: gathered over `fsdp`."""
    return P(*(None if axis == "fsdp" else axis for axis in spec))


@dataclasses.dataclass(frozen=True)
class Layout:
    """A table of sharding rules applied to one tree of parameters on one mesh."""

    mesh: Mesh
    params: PyTree  # abstract, with maps that are stored where there are any
    rules: Rules

    def spec(self, leaf: Leaf) -> P:
        """How one leaf of the parameters is stored."""
        return spec_of(leaf.kernel, leaf.value.shape, self.mesh, self.rules) if leaf.role in _IN_SHARDS else P()

    @functools.cached_property
    def _stored(self) -> dict[tuple[str, tuple[int, ...]], NamedSharding]:
        leaves = roles.leaves(self.params)
        return {(leaf.path, leaf.value.shape): NamedSharding(self.mesh, self.spec(leaf)) for leaf in leaves}

    def shardings(self, tree: PyTree) -> PyTree:
        """Sharding of every leaf of parameters, or of any state that holds trees like them, or paths of such as keys.

        A leaf whose path ends in that of a parameter of the same shape lies like it, all others on every device.
        """
        stored, replicated = self._stored, self.replicated

        def one(path: str, leaf: Any) -> NamedSharding:
            ends = (path[match.start() :] for match in re.finditer(r"(?<![^/])", path))  # from every name on
            return next((stored[end, leaf.shape] for end in ends if (end, leaf.shape) in stored), replicated)

        return map_with_paths(one, tree)

    def abstract(self, tree: PyTree) -> PyTree:
        """The shapes of a tree with their shardings."""
        shape = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
        return jax.tree.map(shape, tree, self.shardings(tree))

    @property
    def batch(self) -> NamedSharding:
        """Of a batch [B, T]: rows over data and fsdp."""
        return NamedSharding(self.mesh, P(BATCH))

    @property
    def replicated(self) -> NamedSharding:
        """Of what every device holds whole."""
        return NamedSharding(self.mesh, P())

    def placed(self, params: PyTree) -> PyTree:
        """The tree in which each weight knows how its matrix is sharded where it is used: a map draws that shard."""

        def used(path: str, shape: Sequence[int]) -> NamedSharding:
            return _used(NamedSharding(self.mesh, spec_of(path, shape, self.mesh, self.rules)))

        return roles.map_weights(lambda path, weight: weight.placed(functools.partial(used, path)), params)

    def at_use(self, params: PyTree) -> PyTree:
        """The tree as layers use it: kernels gathered as they multiply, maps that draw their shard, the rest whole."""

        def one(leaf: Leaf) -> Any:
            stored = NamedSharding(self.mesh, self.spec(leaf))
            if leaf.role in (Role.KERNEL, Role.HEAD):
                return ShardedKernel(leaf.value, stored)
            if leaf.role is Role.DRAWN or stored == _used(stored):
                return leaf.value
            return _gathered(leaf.value, stored)

        return roles.map_leaves(one, self.placed(untie(params)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShardedKernel:
    """A kernel [in, out] in shards; called like a matrix product, see `freezejax.weights.linear`."""

    kernel: jax.Array
    stored: NamedSharding = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`; rows of `x` over data and fsdp."""
        return _sharded_matmul(x, self.kernel, self.stored)

    def materialize(self) -> jax.Array:
        """The kernel, whole but for the axis `tensor`."""
        return _gathered(self.kernel, self.stored)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(in, out)`."""
        return self.kernel.shape


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(leaf: jax.Array, stored: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf, _used(stored))


_gathered.defvjp(
    lambda leaf, stored: (_gathered(leaf, stored), None),
    lambda stored, _, grad: (jax.lax.with_sharding_constraint(grad, stored),),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _sharded_matmul(x: jax.Array, kernel_IxO: jax.Array, stored: NamedSharding) -> jax.Array:
    y = x @ _whole(kernel_IxO, stored, x.dtype)
    return _constrain_rows(y, stored, used_spec(stored.spec)[1:])


def _sharded_forward(x: jax.Array, kernel_IxO: jax.Array, stored: NamedSharding) -> tuple[jax.Array, Any]:
    return _sharded_matmul(x, kernel_IxO, stored), (x, kernel_IxO)


def _sharded_backward(stored: NamedSharding, saved: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel_IxO = saved
    # After the barrier the kernel is gathered again: what the forward pass gathered need not be kept.
    kernel_IxO, grad = jax.lax.optimization_barrier((kernel_IxO, grad))
    x_grad = grad @ _whole(kernel_IxO, stored, x.dtype).T
    x_grad = _constrain_rows(x_grad, stored, used_spec(stored.spec)[:1])
    kernel_grad = kernel_gradient(x, grad).astype(kernel_IxO.dtype)
    return x_grad, jax.lax.with_sharding_constraint(kernel_grad, stored)


_sharded_matmul.defvjp(_sharded_forward, _sharded_backward)


def kernel_gradient(x: jax.Array, grad: jax.Array) -> jax.Array:
    """`x.T @ grad` over all rows, in float32 whatever the compute dtype; dead code, and dropped, of a frozen kernel."""
    x_NxI, grad_NxO = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    return jnp.matmul(x_NxI.T, grad_NxO, preferred_element_type=jnp.float32)


def _used(stored: NamedSharding) -> NamedSharding:
    return NamedSharding(stored.mesh, used_spec(stored.spec))


def _whole(kernel_IxO: jax.Array, stored: NamedSharding, dtype: Any) -> jax.Array:
    # Cast first: bfloat16 is half the bytes on the wire.
    shard = jax.lax.with_sharding_constraint(kernel_IxO.astype(dtype), stored)
    return jax.lax.with_sharding_constraint(shard, _used(stored))


def _constrain_rows(x: jax.Array, stored: NamedSharding, last: Any) -> jax.Array:
    spec = P(BATCH, *(None,) * (x.ndim - 2), *(tuple(last) or (None,)))
    return jax.lax.with_sharding_constraint(x, NamedSharding(stored.mesh, spec))
