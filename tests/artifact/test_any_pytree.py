"""Parameters of a model of one's own: any pytree is saved, and comes back bit-equal to `quantize` into one like it."""

import re
from fractions import Fraction
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from freezejax import artifact, models
from freezejax.artifact.__main__ import main
from freezejax.errors import UserError
from freezejax.paths import leaf_paths
from freezejax.weights import GainWeight, LoraWeight, MapWeight, RandomMap, Site, draw_maps
from tests.freezing.strategies import trees, weights

KEY = jax.random.key(7)


class Pair(NamedTuple):
    """A container of one's own."""

    one: jax.Array
    other: object


class Called(eqx.Module):
    """Calling it is an error: nothing that stores weights has to."""

    up: MapWeight
    weight: jax.Array

    def __call__(self, *_, **__):
        raise AssertionError("it was called")


def normal(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)


def params():
    site = Site("layers/1/up", KEY, KEY)
    seeded = MapWeight.create(RandomMap((80, 96), name="layers/1/up"), KEY)
    return {
        "layers": [Pair(normal(70, 80), None), {"up": LoraWeight.make(GainWeight.make(seeded, site), site, rank=2)}],
        "module": Called(MapWeight.create(RandomMap((64, 8), name="module/up"), KEY), normal(90, 64)),
        "half": (normal(3).astype(jnp.bfloat16), {}),
    }


def same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for path, a, b in zip(leaf_paths(one), jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b.astype(a.dtype)).tobytes(), path


@pytest.mark.parametrize("abstract", [False, True], ids=["like itself", "like its shapes"])
def test_a_tree_comes_back_as_quantized(abstract, tmp_path):
    tree = params()
    saved = artifact.save(tmp_path / "x.fjax", tree, codec="int5", compressor="zlib")
    like = jax.eval_shape(lambda: tree) if abstract else tree
    apply, loaded, meta = artifact.load(tmp_path / "x.fjax", like=like)
    same_bits(loaded, artifact.quantize(tree, "int5"))
    assert [leaf.dtype for leaf in jax.tree.leaves(loaded)] == [leaf.dtype for leaf in jax.tree.leaves(tree)]
    assert meta["model"] is None
    assert (meta["seed"], saved.sizes["seed"]) == ((0, 7), 8)
    assert artifact.predict_bytes(tree, "int5") == artifact.predict_bytes(like, "int5")
    with pytest.raises(UserError, match="parameters alone: apply your own model"):
        apply(loaded)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees(weights()))
def test_whatever_the_containers(tmp_path, tree):
    tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)
    artifact.save(tmp_path / "x.fjax", tree, compressor="none")
    same_bits(artifact.load(tmp_path / "x.fjax", like=tree)[1], artifact.quantize(tree))


def test_drawn_maps_are_not_stored_and_come_back_as_seeds(tmp_path):
    for name, tree in (("a", params()), ("b", draw_maps(params()))):
        artifact.save(tmp_path / name, tree)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = artifact.load(tmp_path / "b", like=draw_maps(params()))[1]
    assert jax.tree.structure(loaded) == jax.tree.structure(params())


# What a freezejax that kept no recipes wrote of `two()`.
WITHOUT_RECIPES = bytes.fromhex(
    "89464a580d0a1a0a0200c500000000000000680000008600000062795636ac941d0c6cad4ec74c053254787b5b83c7b629684ecfdece5c"
    "72244935ccc10a83301004d07f9963094229f4905f091ec44c418cbb925d2928fdf746c1e3cc30efc0a2990551b65202c61646c494d03d"
    "103089bfd1f767bfac95665a11212a6ca3919919d1ebc600d79932edac3725eab43b38a57ded92bf08e9d5cc4fd1c19fa7fffb03000000"
    "000700000000000000000000000600000000000000000000ff7f000000003c40"
)


def two(seed=7, **recipe):
    drawn = RandomMap(**{"shape": (2, 3), "name": "m", **recipe})
    return {"w": jnp.arange(3.0), "m": MapWeight.create(drawn, jax.random.key(seed))}


@pytest.mark.parametrize("change", [{"distribution": "uniform"}, {"name": "n"}, {"scale": 0.5}, {"shape": (3, 2)}])
def test_a_map_of_another_recipe_is_told(change, tmp_path):
    artifact.save(tmp_path / "x.fjax", two())
    with pytest.raises(UserError) as error:
        artifact.load(tmp_path / "x.fjax", like=two(**change))
    ours, theirs = two()["m"].map, two(**change)["m"].map
    told = f"{tmp_path / 'x.fjax'}: wrong model: map 'm' is {ours}, the model asks for {theirs}"
    assert str(error.value) == told


def test_a_map_that_is_missing_or_more_is_told(tmp_path):
    more = two() | {"more": two()["m"]}
    for tree, like, message in (
        (two(), more, "wrong model: map 'more' is missing; nearest: m"),
        (more, two(), "wrong model: it has no map 'more'; nearest: m"),
    ):
        artifact.save(tmp_path / "x.fjax", tree)
        with pytest.raises(UserError, match=message):
            artifact.load(tmp_path / "x.fjax", like=like)


@pytest.mark.parametrize("scale", [None, np.float32(0.1), Fraction(1, 3), 2, "fan_in"], ids=str)
def test_a_recipe_comes_back_from_any_numbers(scale, tmp_path):
    tree = two(scale=scale, shape=(np.int64(2), 3))
    artifact.save(tmp_path / "x.fjax", tree)
    same_bits(artifact.load(tmp_path / "x.fjax", like=two(scale=scale))[1], artifact.quantize(two(scale=scale)))


def test_the_seed_of_a_file_is_the_one_that_counts(tmp_path):
    artifact.save(tmp_path / "x.fjax", two(seed=7))
    _, loaded, meta = artifact.load(tmp_path / "x.fjax", like=two(seed=8))
    same_bits(loaded, artifact.quantize(two(seed=7)))
    assert meta["seed"] == (0, 7)


def test_a_file_without_recipes_loads_as_ever(tmp_path, capsys):
    (tmp_path / "x.fjax").write_bytes(WITHOUT_RECIPES)
    same_bits(artifact.load(tmp_path / "x.fjax", like=two())[1], artifact.quantize(two()))
    assert main(["inspect", str(tmp_path / "x.fjax")]) == 0
    assert "3 weights stored, seeded ones not known: the file does not say its maps" in capsys.readouterr().out


def test_weights_of_seeds_are_counted_and_listed_without_the_model(tmp_path, capsys):
    saved = artifact.save(tmp_path / "x.fjax", params())
    assert main(["inspect", str(saved.path)]) == 0
    out = capsys.readouterr().out
    assert f"weights stored, {80 * 96 + 64 * 8:,} seeded\n" in out
    assert re.search(r"^layers/1/up/base/base +80x96 +map +normal +0 +0.00$", out, re.MULTILINE)
    shown = artifact.read_metadata(saved.path)["maps"]
    assert shown == artifact.load(saved.path, like=params())[2]["maps"]
    assert [found["path"] for found in shown] == ["layers/1/up/base/base", "module/up"]
    assert shown[1] == {
        **{"path": "module/up", "name": "module/up", "shape": (64, 8), "distribution": "normal"},
        **{"scale": "fan_in", "portable": True},
    }


def changed(**parts):
    return lambda tree: {**tree, **parts}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(more=jnp.ones(3)), "wrong model: leaf 'more' is missing; nearest: "),
        (changed(half=()), "wrong model: it has no leaf 'half/0'; nearest: "),
        (changed(half=(jnp.ones(4), {})), r"wrong model: leaf 'half/0' has shape \(3,\), the model asks for \(4,\)"),
        (lambda tree: jax.tree.map(lambda leaf: leaf, {"a": jnp.ones(2)}), "wrong model: leaf 'a' is missing"),
        (changed(half=(jnp.ones(3, jnp.int32), {})), "leaf 'half/0' is int32: an artifact stores float weights"),
    ],
)
def test_another_model_is_told(change, message, tmp_path):
    artifact.save(tmp_path / "x.fjax", params())
    with pytest.raises(UserError, match=message) as error:
        artifact.load(tmp_path / "x.fjax", like=change(params()))
    assert str(error.value).startswith(str(tmp_path / "x.fjax"))


def test_seeds_that_are_or_are_not_there_are_told(tmp_path):
    plain, seeded = {"w": normal(4)}, {"w": normal(4), "m": MapWeight.create(RandomMap((2, 2)), KEY)}
    for tree, like, message in (
        (plain, seeded, "no base seed is stored"),
        (seeded, plain, "a base seed is stored, but nothing is seeded"),
    ):
        artifact.save(tmp_path / "x.fjax", tree)
        with pytest.raises(UserError, match=message):
            artifact.load(tmp_path / "x.fjax", like=like)


def test_a_model_is_named_or_shown_and_never_both(trained, tmp_path):
    artifact.save(tmp_path / "x.fjax", params())
    with pytest.raises(UserError, match=r"show what they are filled into, load\(path, like=params\)"):
        artifact.load(tmp_path / "x.fjax")
    config, plain = trained("geglu")
    artifact.save(tmp_path / "y.fjax", plain, model=config)
    with pytest.raises(UserError, match="it names its own model: load it without like="):
        artifact.load(tmp_path / "y.fjax", like=plain)
    # The weights of a known family without its name are a tree like any other.
    artifact.save(tmp_path / "z.fjax", plain)
    shapes = jax.eval_shape(models.build(**config).init, KEY)
    same_bits(artifact.load(tmp_path / "z.fjax", like=shapes)[1], artifact.quantize(plain))


def test_the_command_reads_such_a_file(tmp_path, capsys):
    saved = artifact.save(tmp_path / "x.fjax", params())
    assert main(["inspect", str(saved.path)]) == 0
    assert "family none named" in capsys.readouterr().out
    assert main(["verify", str(saved.path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"ok: {saved.path}")
    assert "no model is named, nothing was run" in out


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"f": jax.nn.relu, "w": jnp.ones(3)}, "leaf 'f' is .*: an artifact stores float weights"),
        ({"count": jnp.zeros((), jnp.int32)}, "leaf 'count' is int32"),
        ({"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}, "two tensors have one path"),
    ],
)
def test_what_is_no_weight_is_told_and_no_file_is_written(tree, message, tmp_path):
    with pytest.raises(UserError, match=message):
        artifact.save(tmp_path / "x.fjax", tree)
    assert not list(tmp_path.iterdir())
