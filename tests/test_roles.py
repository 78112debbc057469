"""Every leaf has one role, whatever it lies in: nested weights, halves, shapes alone, a bare weight, nothing at all."""

import dataclasses
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freezejax import combine, models, partition, trainable_mask
from freezejax.paths import leaf_paths
from freezejax.roles import (
    Leaf,
    Role,
    Weight,
    checkpoint_mask,
    leaves,
    map_leaves,
    map_weights,
    parameter_count,
    weights,
)
from freezejax.weights import GainWeight, LoraWeight, MapWeight, RandomMap, Site, draw_maps

KEY = jax.random.key(3)
SITE = Site("up/kernel", KEY, KEY)


def nested():
    """An adapter over a gain over a map."""
    seeded = MapWeight.create(RandomMap((6, 4), name="up/kernel"), KEY)
    return LoraWeight.make(GainWeight.make(seeded, SITE), SITE, rank=2)


def tree():
    return {
        "up": {"kernel": nested(), "bias": jnp.zeros(4)},
        "down": [{"kernel": jnp.ones((4, 6))}],
        "head": {"kernel": jnp.ones((6, 9))},
        "tok_emb": {"embedding": jnp.ones((9, 6))},
        "kernel": {"a": jnp.ones(3)},
        "scale": jnp.ones(6),
    }


ROLES = {
    "down/0/kernel": Role.KERNEL,
    "head/kernel": Role.HEAD,
    "kernel/a": Role.VECTOR,  # a name that adapters have, in no adapter
    "scale": Role.VECTOR,
    "tok_emb/embedding": Role.EMBEDDING,
    "up/bias": Role.VECTOR,
    "up/kernel/a": Role.ADAPTER,
    "up/kernel/b": Role.ADAPTER,
    "up/kernel/base/base/seed": Role.SEED,
    "up/kernel/base/gain": Role.GAIN,
}
ABSTRACT = jax.eval_shape(tree)


def roles_of(found):
    return {leaf.path: leaf.role for leaf in leaves(found)}


@pytest.mark.parametrize("found", [tree(), ABSTRACT], ids=["arrays", "shapes"])
def test_paths_are_those_of_the_tree_and_roles_those_of_the_table(found):
    assert roles_of(found) == ROLES
    assert [leaf.path for leaf in leaves(found)] == leaf_paths(found)
    assert all(leaf.value is value for leaf, value in zip(leaves(found), jax.tree.leaves(found), strict=True))


def test_a_leaf_knows_its_kernel_and_the_innermost_weight_that_holds_it():
    found = {leaf.path: leaf for leaf in leaves(tree())}
    inside = {path: type(leaf.owner) for path, leaf in found.items() if leaf.kernel == "up/kernel"}
    assert inside == {
        "up/kernel/a": LoraWeight,
        "up/kernel/b": LoraWeight,
        "up/kernel/base/gain": GainWeight,
        "up/kernel/base/base/seed": MapWeight,
    }
    assert all(leaf.kernel == path and leaf.owner is None for path, leaf in found.items() if path not in inside)


def test_halves_of_a_partition_keep_the_roles_of_what_they_hold():
    mask = trainable_mask(tree(), [(".*/(gain|a)", True), (".*", False)])
    trainable, frozen = partition(tree(), mask)
    assert roles_of(trainable) == {path: role for path, role in ROLES.items() if path.endswith(("gain", "a"))}
    assert roles_of(frozen) | roles_of(trainable) == ROLES
    assert [path for path, _ in weights(trainable)] == ["up/kernel"]  # a weight is one, though half of it is missing
    again = combine(map_leaves(lambda leaf: leaf.value, trainable), map_weights(lambda _, weight: weight, frozen))
    chex.assert_trees_all_equal(again, tree())


def test_a_bare_weight_is_a_whole_tree():
    assert roles_of(nested()) == {"a": "adapter", "b": "adapter", "base/base/seed": "seed", "base/gain": "gain"}
    assert {leaf.kernel for leaf in leaves(nested())} == {""}
    ((path, found),) = weights(nested())
    assert (path, type(found)) == ("", LoraWeight)
    assert map_weights(lambda path, weight: type(weight).__name__, nested()) == "LoraWeight"


@pytest.mark.parametrize("empty", [{}, [], (), None, {"a": {}, "b": None}], ids=str)
def test_an_empty_tree_has_no_leaf_and_no_weight(empty):
    assert leaves(empty) == weights(empty) == []
    assert map_leaves(lambda leaf: 1 / 0, empty) == map_weights(lambda *_: 1 / 0, empty) == empty


def test_inner_weights_change_first_and_what_holds_them_sees_it():
    seen = []

    def drop_gain(path, weight):
        seen.append((path, type(weight).__name__, type(getattr(weight, "base", None)).__name__))
        return weight.base if isinstance(weight, GainWeight) else weight

    found = map_weights(drop_gain, {"up": {"kernel": nested()}})
    assert isinstance(found["up"]["kernel"].base, MapWeight)
    assert [name for _, name, _ in seen] == ["MapWeight", "GainWeight", "LoraWeight"]
    assert {path for path, _, _ in seen} == {"up/kernel"}
    assert seen[-1][2] == "MapWeight"


def test_a_checkpoint_holds_all_but_seeds_and_what_was_drawn():
    params = {"up": {"kernel": draw_maps(nested())}, "scale": jnp.ones(6)}
    saved, constant = partition(params, checkpoint_mask(params))
    assert leaf_paths(saved) == ["scale", "up/kernel/base/gain", "up/kernel/a", "up/kernel/b"]
    assert sorted(leaf_paths(constant)) == ["up/kernel/base/base/levels", "up/kernel/base/base/seed"]
    held = dict(zip(leaf_paths(ABSTRACT), jax.tree.leaves(checkpoint_mask(ABSTRACT)), strict=True))
    assert held == {path: role is not Role.SEED for path, role in ROLES.items()}


def test_a_seed_counts_for_its_matrix_and_what_was_drawn_for_nothing():
    params = {"up": {"kernel": draw_maps(nested())}}
    counts = {leaf.path.removeprefix("up/kernel/"): parameter_count(leaf) for leaf in leaves(params)}
    assert counts == {"a": 12, "b": 8, "base/gain": 4, "base/base/seed": 24, "base/base/levels": 0}


def test_roles_are_read_and_no_names():
    """The toy's fields are called as those of no other kind, and its seed stands for its whole matrix."""

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Toy(Weight):
        roles: ClassVar = {"w": Role.KERNEL, "key": Role.SEED}
        w: Any
        key: Any

        def materialize(self):
            return self.w * 2

    toy = {"x": Toy(jnp.ones((3, 2)), np.zeros(2, np.uint32))}
    assert roles_of(toy) == {"x/w": Role.KERNEL, "x/key": Role.SEED}
    assert jax.tree.leaves(trainable_mask(toy, [(".*", True)])) == [True, False]
    # Shape and count need no method of its own, and no numbers.
    assert [parameter_count(leaf) for leaf in leaves(jax.eval_shape(lambda: toy))] == [6, 6]
    with pytest.raises(TypeError, match="Toy does not say how it multiplies: write its __call__"):
        toy["x"](jnp.ones((1, 3)))


def test_a_field_without_a_role_is_an_error_that_names_it():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Forgetful(Weight):
        roles: ClassVar = {"w": Role.KERNEL}
        w: Any
        shift: Any

    with pytest.raises(TypeError, match=r"Forgetful\.roles says nothing of its field 'shift'"):
        leaves({"x": {"kernel": Forgetful(jnp.ones((2, 2)), jnp.ones(2))}})


def test_something_callable_in_a_tree_is_never_called():
    class Called:
        def __call__(self, *_):
            raise AssertionError("it was called")

    layer = Called()
    assert leaves({"f": layer}) == [Leaf("f", Role.VECTOR, "f", layer, None)]
    assert map_weights(lambda *_: 1 / 0, {"f": layer}) == {"f": layer}
    assert jax.tree.leaves(checkpoint_mask({"f": layer})) == [True]


def test_every_leaf_of_a_model_is_visited_once(monkeypatch):
    """Linear: one path is made per leaf, and one per weight that holds it, however many leaves there are."""
    calls = []
    path_string = leaves.__globals__["path_string"]
    monkeypatch.setitem(leaves.__globals__, "path_string", lambda path: calls.append(path) or path_string(path))
    rules = [{"pattern": ".*/up/kernel", "kind": kind} for kind in ("map", "lora")]
    shapes = jax.eval_shape(models.build("geglu", num_layers=40, model_dim=32, num_heads=1, weights=rules).init, KEY)
    calls.clear()
    assert len(calls) == 0
    found = leaves(shapes)
    assert len(found) < len(calls) < 3 * len(found)
