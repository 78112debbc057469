"""A random map as a weight: the base seed in place of a matrix."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from freezejax.errors import UserError
from freezejax.paths import PyTree
from freezejax.roles import Role, Weight, leaves, map_leaves, map_weights, parameter_count
from freezejax.weights.kinds import Site, check_flag
from freezejax.weights.random_map import RandomMap, Sharding, check_key, scaled_product


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MapWeight(Weight):
    """What stands in the parameters where a kernel [in, out] is a random map.

    Where `levels` is given the map was drawn before, and `seed` is not read.

    >>> weight = MapWeight.create(RandomMap((4, 2), "rademacher"), jax.random.key(0))
    >>> weight(jnp.ones((3, 4))).shape
    (3, 2)
    """

    roles: ClassVar = {"seed": Role.SEED, "levels": Role.DRAWN}

    seed: jax.Array | None  # uint32 [2]: data of the base key, the same for every map of a model
    levels: jax.Array | None  # float32 [in, out], see `draw_maps`
    map: RandomMap = dataclasses.field(metadata={"static": True})
    sharding: Sharding = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def create(cls, random_map: RandomMap, base_key: jax.Array, sharding: Sharding = None) -> Self:
        """The weight of a map, from the typed base key."""
        check_key(base_key)
        return cls(jax.random.key_data(base_key), None, random_map, sharding)

    @classmethod
    def make(
        cls, kernel: Any, site: Site, *, distribution: str = "normal", scale: Any = "fan_in", trained: bool = False
    ) -> Any:
        """Kind "map": a random map in place of the kernel, of which only the shape is read; options as of `RandomMap`.

        With `trained`, the control, the kernel only starts as this map, and is stored and trained.
        """
        if isinstance(kernel, Weight):
            raise UserError("a map takes the place of the kernel: let its rule stand before those of adapters")
        check_flag("trained", trained)
        random_map = RandomMap(kernel.shape, distribution, scale, site.path)
        return random_map.materialize(site.base_key) if trained else cls.create(random_map, site.base_key)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        if self.levels is None:
            return self.map.apply(x, self.key, sharding=self.sharding)
        self.map.check_input(x)
        return scaled_product(x, self.levels, self.map.step)

    @property
    def key(self) -> jax.Array:
        """The base key."""
        assert self.seed is not None
        return jax.random.wrap_key_data(self.seed, impl="threefry2x32")

    @property
    def shape(self) -> tuple[int, int]:
        """`(in, out)`."""
        return self.map.shape

    def materialize(self) -> jax.Array:
        """The weights, float32 [in, out]."""
        levels = self.map.levels(self.key, self.sharding) if self.levels is None else self.levels
        return levels * jnp.float32(self.map.step)

    def placed(self, used: Callable[[tuple[int, int]], NamedSharding]) -> Self:
        """The map told which shard each device draws; a drawn one is laid out so."""
        sharding = used(self.shape)
        levels = None if self.levels is None else jax.lax.with_sharding_constraint(self.levels, sharding)
        return dataclasses.replace(self, sharding=sharding, levels=levels)


def maps_of(tree: PyTree) -> list[MapWeight]:
    """Every random map in a tree of parameters.

    >>> maps_of({"w": jnp.ones(2)})
    []
    """
    found = {id(leaf.owner): leaf.owner for leaf in leaves(tree)}
    return [owner for owner in found.values() if isinstance(owner, MapWeight)]


def count_seeded(tree: PyTree) -> int:
    """Number of weights that seeds stand for.

    >>> count_seeded({"w": MapWeight.create(RandomMap((4, 2)), jax.random.key(0)), "b": jnp.ones(2)})
    8
    """
    return sum(parameter_count(leaf) for leaf in leaves(tree) if leaf.role is Role.SEED)


def as_matrices(tree: PyTree) -> PyTree:
    """Shapes of a tree in which a seed has the shape of the matrix that it stands for.

    >>> as_matrices({"w": MapWeight.create(RandomMap((4, 2)), jax.random.key(0))})["w"].seed.shape
    (4, 2)
    """

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        if leaf.role is Role.SEED:
            return jax.ShapeDtypeStruct(leaf.owner.shape, jnp.float32)
        return jax.ShapeDtypeStruct(leaf.value.shape, leaf.value.dtype)

    return map_leaves(shape, tree)


def draw_maps(tree: PyTree) -> PyTree:
    """The tree with every random map drawn, so that using it draws nothing.

    Applied once, before a run, the maps are stored: arguments of the step. Applied at the start of a step they
    are drawn once per step. Without it a map is drawn in each layer and pass. All three give the same bits.

    >>> draw_maps({"w": MapWeight.create(RandomMap((4, 2)), jax.random.key(0))})["w"].levels.shape
    (4, 2)
    """
    drawn = lambda weight: None if weight.seed is None else weight.map.levels(weight.key, weight.sharding)  # noqa: E731
    return _with_levels(tree, drawn)


def drop_maps(tree: PyTree) -> PyTree:
    """Inverse of `draw_maps`: maps are seeds again.

    >>> drop_maps(draw_maps({"w": MapWeight.create(RandomMap((4, 2)), jax.random.key(0))}))["w"].levels is None
    True
    """
    return _with_levels(tree, lambda _: None)


def _with_levels(tree: PyTree, levels: Callable[[MapWeight], Any]) -> PyTree:
    def change(_: str, weight: Weight) -> Weight:
        return dataclasses.replace(weight, levels=levels(weight)) if isinstance(weight, MapWeight) else weight

    return map_weights(change, tree)
