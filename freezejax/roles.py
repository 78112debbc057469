"""What every leaf of the parameters is: its role, which others read where they would have to ask for its name.

| role | what it is | trains | stored | on a mesh | Muon |
|---|---|---|---|---|---|
| kernel | a matrix [in, out], or a stack of them [E, in, out] | by rule | yes | in shards by the family's table | yes |
| head | the kernel of an untied output head | by rule | yes | in shards | no |
| embedding | a table [V, D] | by rule | yes | in shards | no |
| vector | everything else in a model | by rule | yes | whole | no |
| balance | what steers the loads of experts: no gradient reaches it | never | yes | whole | no |
| coded | a matrix [in, out], used rounded to a few levels | by rule | yes, as those levels | in shards | yes |
| adapter | a small matrix beside a kernel | by rule | yes, by a codec of its own | whole | no |
| gain | a vector beside a kernel | by rule | yes | whole | no |
| seed | key data that a kernel is drawn from | never | once per file, 8 bytes | whole | no |
| drawn | what was drawn from a seed | never | no | in shards, as the kernel it is | no |
"""

import enum
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax

from freezejax.paths import PyTree, path_string


class Role(enum.StrEnum):
    """What a leaf is; see the table above."""

    KERNEL = enum.auto()
    HEAD = enum.auto()
    EMBEDDING = enum.auto()
    VECTOR = enum.auto()
    BALANCE = enum.auto()
    CODED = enum.auto()
    ADAPTER = enum.auto()
    GAIN = enum.auto()
    SEED = enum.auto()
    DRAWN = enum.auto()

    @property
    def constant(self) -> bool:
        """Whether such a leaf never trains and has no place in a checkpoint of what was learned."""
        return self in (Role.SEED, Role.DRAWN)

    @property
    def learns(self) -> bool:
        """Whether a rule may let such a leaf train: weight decay would move what has no gradient."""
        return not self.constant and self is not Role.BALANCE


class Weight:
    """What stands in the parameters where a kernel [in, out] stands; called like a matrix product.

    A kind of weight is a subclass, a dataclass registered with `jax.tree_util.register_dataclass`, whose fields are
    arrays, other weights, or static. `roles` says what each array is; the field of the kernel that an adapter stands
    over is a KERNEL. That field may hold another weight, and on a mesh it holds a kernel in shards: multiply with it
    through `freezejax.weights.linear`, and read it through `freezejax.weights.matrix`.
    """

    roles: ClassVar[Mapping[str, Role]] = {}
    shifts: ClassVar[bool] = False  # whether it adds a vector, beside the product with its matrix

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        raise TypeError(f"{type(self).__name__} does not say how it multiplies: write its __call__")

    def materialize(self) -> jax.Array:
        """The matrix [in, out] that it stands for."""
        raise TypeError(f"{type(self).__name__} does not say what matrix it is: write its materialize")

    def unmerged(self, merged: jax.Array) -> Self:
        """This weight over the base, its field `base`, under which it is the matrix `merged`: see `weights.unmerge`."""
        raise TypeError(f"{type(self).__name__} does not say how it is taken out of a matrix: write its unmerged")

    @property
    def shape(self) -> tuple[int, int]:
        """`(in, out)`."""
        return jax.eval_shape(type(self).materialize, self).shape

    def placed(self, used: Callable[[tuple[int, int]], jax.sharding.NamedSharding]) -> Self:
        """This weight, told how a matrix of its shape is sharded where it is used: see `MapWeight`, which makes one."""
        return self


class Leaf(NamedTuple):
    """One leaf of the parameters."""

    path: str
    role: Role
    kernel: str  # path of the weight it is part of; of a leaf that is part of none, its own
    value: Any
    owner: Weight | None  # the innermost weight that holds it


def leaves(tree: PyTree) -> list[Leaf]:
    """Every leaf of the parameters with its role, in the order in which JAX flattens them.

    A leaf outside of any `Weight` has the role its last name says: `kernel` (under `head` or `lm_head`: HEAD;
    under `correction`: ADAPTER), `embedding`, `balance`, or else VECTOR.

    >>> [leaf.role.value for leaf in leaves({"up": {"kernel": 1.0}, "ln": {"scale": 2.0}})]
    ['vector', 'kernel']
    """
    return list(_leaves(tree, "", None, None))


def _leaves(tree: PyTree, path: str, kernel: str | None, owner: Weight | None) -> Iterator[Leaf]:
    """Those of a tree, or of the weight `owner` that stands at `path`."""
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: node is not owner and is_weight(node))
    for key_path, node in nodes:
        name = "/".join(filter(None, (path, path_string(key_path))))
        of_kernel = name if kernel is None else kernel
        if is_weight(node):
            yield from _leaves(node, name, of_kernel, node)
        elif owner is None:
            yield Leaf(name, _role(name), name, node, None)
        elif (field := path_string(key_path[:1])) in owner.roles:
            yield Leaf(name, owner.roles[field], of_kernel, node, owner)
        else:
            raise TypeError(f"{type(owner).__name__}.roles says nothing of its field {field!r}")


def map_leaves(fn: Callable[[Leaf], Any], tree: PyTree) -> PyTree:
    """`jax.tree.map` whose function gets a `Leaf`."""
    return jax.tree.unflatten(jax.tree.structure(tree), [fn(leaf) for leaf in leaves(tree)])


def weights(tree: PyTree) -> list[tuple[str, Weight]]:
    """Path and value of every outermost `Weight` of a tree."""
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_weight)
    return [(path_string(path), node) for path, node in nodes if is_weight(node)]


def map_weights(fn: Callable[[str, Weight], Any], tree: PyTree) -> PyTree:
    """The tree with every `Weight`, inner ones first, put through a function of its kernel's path and itself."""

    def change(node: Any, kernel: str) -> Any:
        if not is_weight(node):
            return node
        inner = jax.tree.map(lambda x: change(x, kernel), node, is_leaf=lambda x: x is not node and is_weight(x))
        return fn(kernel, inner)

    return jax.tree_util.tree_map_with_path(lambda path, node: change(node, path_string(path)), tree, is_leaf=is_weight)


def checkpoint_mask(tree: PyTree) -> PyTree:
    """True at every leaf that a checkpoint must hold: all but seeds, and what was drawn from them.

    `partition(params, checkpoint_mask(params))` gives the half to save; `combine` puts it back beside the seeds of a
    model that was made afresh from the same base key.

    >>> checkpoint_mask({"up": {"kernel": 1.0}})
    {'up': {'kernel': True}}
    """
    return map_leaves(lambda leaf: not leaf.role.constant, tree)


def is_weight(node: Any) -> bool:
    """Whether a node is a `Weight`."""
    return isinstance(node, Weight)


def parameter_count(leaf: Leaf) -> int:
    """Number of parameters a leaf stands for: a seed for the matrix drawn from it, what was drawn for none."""
    if leaf.role is Role.DRAWN:
        return 0
    if leaf.role is Role.SEED and leaf.owner is not None:
        return math.prod(leaf.owner.shape)
    return math.prod(leaf.value.shape)


def _role(path: str) -> Role:
    *parents, last = path.split("/")
    if last == "kernel" and "correction" in parents:
        return Role.ADAPTER
    if last == "kernel":
        return Role.HEAD if parents and parents[-1].endswith("head") else Role.KERNEL
    return {"embedding": Role.EMBEDDING, "balance": Role.BALANCE}.get(last, Role.VECTOR)
