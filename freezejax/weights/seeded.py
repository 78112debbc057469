"""A random map as a leaf of the parameters: its root seed, and a learned gain where it has one."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from freezejax.errors import UserError
from freezejax.masks import compile_pattern
from freezejax.paths import PyTree, leaf_paths, nearest
from freezejax.weights.random_map import RandomMap, Sharding, check_key, scaled_product, with_gain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MapWeight:
    """What stands in the parameters where a kernel [in, out] is a random map.

    It is called like a matrix product. `root` never trains; `gain` does. Where `levels` is given the map is
    stored, and `root` is not read.

    >>> weight = MapWeight.create(RandomMap((4, 2), "rademacher"), jax.random.key(0))
    >>> weight(jnp.ones((3, 4))).shape
    (3, 2)
    """

    root: jax.Array | None  # uint32 [2]: data of the root key, the same for every map of a model
    gain: jax.Array | None  # float32 [out], for scale='gain'
    levels: jax.Array | None  # float32 [in, out], see `hold`
    map: RandomMap = dataclasses.field(metadata={"static": True})
    sharding: Sharding = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def create(cls, random_map: RandomMap, root: jax.Array, sharding: Sharding = None) -> Self:
        """The map's leaf, from the typed root key; a gain starts at one."""
        check_key(root)
        gain = jnp.ones(random_map.shape[1], jnp.float32) if random_map.scale == "gain" else None
        return cls(jax.random.key_data(root), gain, None, random_map, sharding)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        if self.levels is None:
            return self.map.apply(x, self.key, gain=self.gain, sharding=self.sharding)
        self.map.check_input(x)
        return with_gain(scaled_product(x, self.levels, self.map.step), self.gain)

    @property
    def key(self) -> jax.Array:
        """The root key."""
        assert self.root is not None
        return jax.random.wrap_key_data(self.root, impl="threefry2x32")

    def materialize(self) -> jax.Array:
        """The weights [in, out] as used, with their gain; float32."""
        weights = self.map.materialize(self.key, self.sharding)
        return weights if self.gain is None else weights * self.gain[None]


def map_weights(tree: PyTree) -> list[MapWeight]:
    """Every random map in a tree of parameters.

    >>> map_weights({"w": jnp.ones(2)})
    []
    """
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, MapWeight))
    return [leaf for leaf in leaves if isinstance(leaf, MapWeight)]


def count_seeded(tree: PyTree) -> int:
    """Number of weights that the random maps of a tree stand for.

    >>> count_seeded({"w": MapWeight.create(RandomMap((4, 2)), jax.random.key(0)), "b": jnp.ones(2)})
    8
    """
    return sum(weight.map.shape[0] * weight.map.shape[1] for weight in map_weights(tree))


def as_matrices(tree: PyTree) -> PyTree:
    """Shapes of a tree in which the root of every map is the matrix that it stands for.

    >>> shapes = as_matrices({"w": MapWeight.create(RandomMap((4, 2)), jax.random.key(0))})
    >>> shapes["w"].root.shape
    (4, 2)
    """

    def grow(leaf: Any) -> Any:
        if not isinstance(leaf, MapWeight):
            return leaf
        matrix: Any = jax.ShapeDtypeStruct(leaf.map.shape, jnp.float32)
        return dataclasses.replace(leaf, root=matrix)

    return jax.tree.map(grow, jax.eval_shape(lambda: tree), is_leaf=lambda leaf: isinstance(leaf, MapWeight))


def hold(tree: PyTree) -> PyTree:
    """The tree with every random map drawn, so that using it draws nothing.

    Applied once, before a run, the maps are stored: arguments of the step. Applied at the start of a step they
    are drawn once per step. Without it a map is drawn in each layer and pass. All three give the same bits.

    >>> held = hold({"w": MapWeight.create(RandomMap((4, 2)), jax.random.key(0))})
    >>> held["w"].levels.shape
    (4, 2)
    """
    return _replace(
        tree, lambda weight: weight.map.levels(weight.key, weight.sharding) if weight.root is not None else None
    )


def release(tree: PyTree) -> PyTree:
    """Inverse of `hold`: maps are seeds again.

    >>> release(hold({"w": MapWeight.create(RandomMap((4, 2)), jax.random.key(0))}))["w"].levels is None
    True
    """
    return _replace(tree, lambda _: None)


def _replace(tree: PyTree, levels: Callable[[MapWeight], Any]) -> PyTree:
    def change(leaf: Any) -> Any:
        return dataclasses.replace(leaf, levels=levels(leaf)) if isinstance(leaf, MapWeight) else leaf

    return jax.tree.map(change, tree, is_leaf=lambda leaf: isinstance(leaf, MapWeight))


def with_shardings(tree: PyTree, rules: Sequence[tuple[str, NamedSharding]]) -> PyTree:
    """The tree with its maps laid out over a mesh: each device draws its own shard only.

    Args:
      tree: parameters.
      rules: ordered `(regex of kernel paths, sharding [in, out])`; the first match wins, the rest stay as they are.
        Leave axes that split the batch out: a map is needed whole there, and drawn whole.

    Raises:
      UserError: a pattern that matches no map.

    >>> with_shardings({"w": MapWeight.create(RandomMap((4, 2)), jax.random.key(0))}, [])["w"].sharding is None
    True
    """
    names = [weight.map.name for weight in map_weights(tree)]
    compiled = [(compile_pattern(pattern), sharding) for pattern, sharding in rules]
    for pattern, _ in compiled:
        if not any(pattern.fullmatch(name) for name in names):
            raise UserError(f"sharding rule {pattern.pattern!r} matches no map; {nearest(pattern.pattern, names)}")

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, MapWeight):
            return leaf
        matching = (sharding for pattern, sharding in compiled if pattern.fullmatch(leaf.map.name))
        return dataclasses.replace(leaf, sharding=next(matching, leaf.sharding))

    return jax.tree.map(place, tree, is_leaf=lambda leaf: isinstance(leaf, MapWeight))


def check_seeds_frozen(params: PyTree, mask: PyTree) -> None:
    """Refuses a mask under which a root seed would train.

    Raises:
      UserError: naming the leaf, and the rule that mends it.

    >>> params = {"w": MapWeight.create(RandomMap((4, 2)), jax.random.key(0))}
    >>> check_seeds_frozen(params, jax.tree.map(lambda _: True, params))
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: leaf 'w/root' is a root seed and cannot train: let ('.*/root', False) be the first rule
    """
    leaves = zip(leaf_paths(params), jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)
    for path, leaf, trainable in leaves:
        if trainable and leaf.dtype == np.uint32:
            raise UserError(f"leaf {path!r} is a root seed and cannot train: let ('.*/root', False) be the first rule")
