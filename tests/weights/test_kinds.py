"""Every kind of weight, in one table, put through one contract; a toy kind known to this file alone passes it whole.

The contract is what the rest of the library relies on, and nothing else: a kind that keeps it can be trained, frozen,
laid on a mesh, packed, loaded and described with no line changed elsewhere. Broken kinds show that each clause is read.
"""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from freezejax import UserError, artifact, combine, describe, freeze, models, partition, trainable_mask
from freezejax.roles import Role, Weight, is_weight, leaves
from freezejax.sharding import Layout, make_mesh
from freezejax.training.config import OptimizerConfig
from freezejax.training.optimizers import make_optimizer
from freezejax.training.step import StepState, make_step
from freezejax.weights import KINDS, MapWeight, RandomMap, Site, draw_maps, linear, matrix

KEY, BASE_KEY = jax.random.key(5), jax.random.key(6)
SHAPE = (12, 20)
SITE = Site("blocks/0/mlp/up/kernel", KEY, BASE_KEY)
OPTIONS = {"map": {"distribution": "uniform"}, "lora": {"rank": 3, "alpha": 2.0}, "gain": {}, "vera": {"rank": 3}}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Vera(Weight):
    """The toy: a learned diagonal between two random maps, beside the kernel. Source: VeRA, arXiv:2310.11454."""

    roles: ClassVar = {"base": Role.KERNEL, "diagonal": Role.ADAPTER, "gain": Role.GAIN}

    base: Any
    down: MapWeight
    diagonal: jax.Array
    up: MapWeight
    gain: jax.Array

    @classmethod
    def make(cls, base: Any, site: Site, *, rank: int = 4) -> Self:
        width_in, width_out = base.shape
        down = MapWeight.create(RandomMap((width_in, rank), name=f"{site.path}/down"), site.base_key)
        up = MapWeight.create(RandomMap((rank, width_out), name=f"{site.path}/up"), site.base_key)
        return cls(base, down, jnp.full(rank, 0.1, jnp.float32), up, jnp.zeros(width_out, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        low = self.up(_scaled(self.down(x), self.diagonal))
        return linear(x, self.base) + _scaled(low, self.gain)

    def materialize(self) -> jax.Array:
        low = (matrix(self.down) * self.diagonal[None]) @ matrix(self.up)
        return matrix(self.base) + low * self.gain[None]


def _scaled(x, scale):
    return x * scale.astype(x.dtype).reshape((1,) * (x.ndim - 1) + scale.shape)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(KINDS, "vera", Vera.make)  # the one line


ALL_KINDS = ["map", "lora", "gain", "vera"]
every_kind = pytest.mark.parametrize("kind", ALL_KINDS)


def test_the_table_has_every_kind():
    assert set(ALL_KINDS) == set(KINDS) == set(OPTIONS)


def plain(shape=SHAPE, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[0]), jnp.float32)


def build(kind, kernel=None, site=SITE):
    return KINDS[kind](plain() if kernel is None else kernel, site, **OPTIONS[kind])


def moved(tree):
    """Away from initial zeros and ones, so that every leaf matters."""

    def move(leaf):
        shift = 0.1 * np.cos(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape)
        return leaf + shift if leaf.dtype == jnp.float32 else leaf

    return jax.tree.map(move, tree)


# The clauses: each raises AssertionError, or an error of its own, for a weight that breaks it.


def check_product(weight):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, SHAPE[0])), jnp.float32)
    whole = np.asarray(weight.materialize(), np.float64)
    assert whole.shape == weight.shape == SHAPE
    expected, size = np.asarray(x, np.float64) @ whole, np.abs(whole).max() * SHAPE[0]
    for dtype, tolerance in ((jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)):
        for call in (weight, jax.jit(lambda x: weight(x))):
            found = call(x.astype(dtype))
            assert found.dtype == dtype
            np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=tolerance * size)


def check_roles(weight):
    static = {field.name for field in dataclasses.fields(weight) if field.metadata.get("static")}
    named = {field.name for field in dataclasses.fields(weight)} - static
    inner = {name for name in named if is_weight(getattr(weight, name))}
    assert set(weight.roles) <= named, "a role of no field"
    assert named - inner <= set(weight.roles), "a field without a role"
    for leaf in leaves(weight):
        assert isinstance(leaf.role, Role)
        assert leaf.role is not Role.SEED or leaf.value.dtype == jnp.uint32


def check_shapes_are_known_without_numbers(weight):
    abstract = jax.eval_shape(lambda: weight)
    assert abstract.shape == weight.shape


def check_init(make):
    """`make(site)`: the same bits from the same keys; another layer's weight is another, and changes none."""
    one, again, other = (make(site) for site in (SITE, SITE, SITE._replace(path="blocks/1/mlp/up/kernel")))
    assert bits(one) == bits(again)
    random = {leaf.role for leaf in leaves(one)} & {Role.SEED, Role.ADAPTER}
    if random and not np.array_equal(one.materialize(), plain()):
        assert not np.array_equal(one.materialize(), other.materialize()), "two layers share what they drew"


def check_trains(weight):
    """One step of AdamW with decay moves what may train, all of it; seeds and what is frozen keep their bits."""
    params = {"up": {"kernel": weight}, "down": {"kernel": plain(SHAPE[::-1])}}
    x = plain((6, SHAPE[0]), seed=2)

    def loss(params, batch, key):
        return jnp.mean(
            jnp.square(linear(jnp.tanh(linear(batch["x"], params["up"]["kernel"])), params["down"]["kernel"]))
        )

    for decay, rules in ((0.0, [(".*", True)]), (0.1, [(r"up/kernel(/base.*|/seed)?", False), (".*", True)])):
        mask = trainable_mask(params, rules)
        tx = freeze(make_optimizer(OptimizerConfig(weight_decay=decay), lambda count: jnp.ones([])), mask)
        trainable, frozen = partition(params, mask)
        step = make_step(loss, tx)
        state = StepState(trainable, tx.init(params), None)
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
            state, _ = step(state, frozen, jax.random.key(0), jnp.int32(0), {"x": x})
        before, after = bits(params), bits(combine(state.trainable, frozen))
        changed = {path for path in before if before[path] != after[path]}
        may_train = {leaf.path for leaf, trains in zip(leaves(params), jax.tree.leaves(mask), strict=True) if trains}
        assert changed == may_train
        assert not {leaf.path for leaf in leaves(params) if leaf.role.constant} & changed


def check_shards(weight):
    mesh, params = make_mesh(), {"up": {"kernel": weight}}
    rules = [("up/kernel", P("fsdp", "tensor"))]
    layout = Layout(mesh, jax.eval_shape(lambda: params), rules)
    x = plain((4, 2, SHAPE[0]), seed=3)
    found = jax.jit(lambda params: layout.at_use(params)["up"]["kernel"](x))(params)
    np.testing.assert_allclose(found, weight(x), atol=1e-5)
    wide = Layout(SimpleNamespace(shape={"data": 1, "fsdp": 2, "tensor": 2}), params, rules)
    for leaf in leaves(draw_maps(params)):
        if leaf.value.shape == SHAPE:  # the kernel, stored or drawn
            assert wide.spec(leaf) == P("fsdp", "tensor"), leaf.path
        elif leaf.role is not Role.DRAWN:
            assert wide.spec(leaf) == P(), leaf.path


def check_packs(weight, folder):
    params = {"up": {"kernel": weight}, "scale": jnp.ones(3)}
    wanted = artifact.quantize(params, "int6")
    saved = artifact.save(folder / "x.fjax", params, codec="int6", compressor="zlib")
    _, loaded, meta = artifact.load(folder / "x.fjax", like=jax.eval_shape(lambda: params))
    assert bits(loaded) == bits(wanted)
    stored = [leaf.path for leaf in leaves(params) if not leaf.role.constant]
    assert [tensor["path"] for tensor in meta["tensors"]] == stored
    assert saved.sizes["seed"] == 8 * any(leaf.role is Role.SEED for leaf in leaves(params))
    bits(draw_maps(loaded))


def check_described(weight):
    params = {"up": {"kernel": weight}}
    rows = describe(params, trainable_mask(params, [(".*", True)]), tx=optax.adam(1e-3)).phases[0][1]
    drawn = sum(int(np.prod(node.shape)) for node in seeded(weight))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(weight) if leaf.dtype == jnp.float32)
    assert rows[-1].parameters == numbers + drawn
    assert rows[-1].trainable_parameters == numbers
    assert rows[-1].gradient_bytes == 4 * numbers


def seeded(node):
    """Every random map in a weight, found by type and not by role."""
    nodes = jax.tree.leaves(node, is_leaf=lambda leaf: isinstance(leaf, MapWeight))
    return [leaf for leaf in nodes if isinstance(leaf, MapWeight)]


def bits(tree):
    return {leaf.path: np.asarray(leaf.value).tobytes() for leaf in leaves(tree)}


CLAUSES = {
    "product": check_product,
    "roles": check_roles,
    "shapes": check_shapes_are_known_without_numbers,
    "trains": check_trains,
    "shards": check_shards,
    "described": check_described,
}


@every_kind
@pytest.mark.parametrize("clause", CLAUSES)
def test_every_kind_keeps_every_clause(kind, clause):
    CLAUSES[clause](moved(build(kind)))


@every_kind
def test_every_kind_packs_and_loads_bit_equal_to_quantize(kind, tmp_path):
    check_packs(moved(build(kind, plain((80, 96)), SITE)), tmp_path)


@every_kind
def test_every_kind_starts_from_its_site_alone(kind):
    check_init(functools.partial(lambda site, kind: build(kind, site=site), kind=kind))


@every_kind
@pytest.mark.parametrize("inner", ALL_KINDS)
def test_every_kind_stands_over_every_other_or_says_why_not(kind, inner):
    under = moved(build(inner))
    if kind == "map":
        with pytest.raises(UserError, match="let its rule stand before"):
            build(kind, under)
        return
    weight = moved(build(kind, under))
    for check in (check_product, check_roles, check_shapes_are_known_without_numbers, check_described):
        check(weight)


MODEL = {"family": "geglu", "vocab_size": 13, "model_dim": 64, "num_heads": 2}
UP = r"blocks/\d+/mlp/up/kernel"


@every_kind
def test_a_model_with_each_kind_trains_packs_and_comes_back(kind, tmp_path):
    """From its config alone; a second layer changes nothing of the first."""
    weights = [{"pattern": UP, "kind": kind, **OPTIONS[kind]}]
    config = {**MODEL, "num_layers": 1, "weights": weights}
    model = models.build(**config)
    params = model.init(KEY, BASE_KEY)
    larger = models.build(**{**config, "num_layers": 2}).init(KEY, BASE_KEY)
    assert bits(larger["blocks"][0]["mlp"]) == bits(params["blocks"][0]["mlp"])
    params = moved(params)
    artifact.save(tmp_path / "x.fjax", params, model=config, compressor="none")
    apply, loaded, meta = artifact.load(tmp_path / "x.fjax")
    wanted = artifact.quantize(params)
    assert jax.tree.structure(loaded) == jax.tree.structure(wanted)
    assert bits(loaded) == bits(wanted)
    assert meta["model"] == config
    tokens = np.arange(6, dtype=np.int32).reshape(2, 3)
    np.testing.assert_array_equal(jax.jit(apply)(loaded, tokens), jax.jit(model.apply)(wanted, tokens))


def test_muon_takes_the_kernel_of_the_toy_and_adam_the_rest():
    params = {"up": {"kernel": moved(build("vera"))}}
    mask = trainable_mask(params, [(".*", True)])
    state = freeze(make_optimizer(OptimizerConfig(name="muon"), lambda count: jnp.ones([])), mask).init(params)
    text = {jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    second = {path.rpartition(".nu")[2] for path in text if ".nu" in path}
    assert second == {"['up']['kernel'].diagonal", "['up']['kernel'].gain"}


# Counterparts: kinds that break one clause each.


def changed(**methods):
    """The toy with some of its methods or its roles exchanged."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(type("Broken", (Vera,), methods)))


def of(broken, weight):
    return broken(**{field.name: getattr(weight, field.name) for field in dataclasses.fields(weight)})


BROKEN = {
    "materializes without its adapter": ("product", {"materialize": lambda self: matrix(self.base)}, AssertionError),
    "computes in float32 only": (
        "product",
        {"__call__": lambda self, x: x.astype(jnp.float32) @ self.materialize()},
        (AssertionError, TypeError),
    ),
    "a field has no role": ("roles", {"roles": {"base": Role.KERNEL, "gain": Role.GAIN}}, (AssertionError, TypeError)),
    "a role has no field": ("roles", {"roles": {**Vera.roles, "c": Role.GAIN}}, AssertionError),
    "shape from numbers": ("shapes", {"shape": property(lambda self: np.asarray(self.base).shape)}, AssertionError),
    "a learned leaf is called constant": ("described", {"roles": {**Vera.roles, "gain": Role.DRAWN}}, AssertionError),
    "the adapter is cut off the gradient": (
        "trains",
        {"__call__": lambda self, x: linear(x, jax.lax.stop_gradient(self.materialize()))},
        AssertionError,
    ),
    "an adapter goes for a kernel": ("shards", {"roles": {**Vera.roles, "diagonal": Role.KERNEL}}, Exception),
    "the kernel lies whole": ("shards", {"roles": {**Vera.roles, "base": Role.VECTOR}}, AssertionError),
    "the kernel is read, not used": (
        "shards",
        {"__call__": lambda self, x: x @ self.base + _scaled(self.up(_scaled(self.down(x), self.diagonal)), self.gain)},
        Exception,
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_counterpart_a_broken_kind_is_seen(name):
    clause, methods, error = BROKEN[name]
    weight = moved(build("vera"))
    CLAUSES[clause](weight)  # it is what was changed that is seen
    with pytest.raises(error):
        CLAUSES[clause](of(changed(**methods), weight))


def test_counterpart_two_layers_that_share_their_draw_are_seen():
    def same_everywhere(site):
        return moved(Vera.make(plain(), site._replace(path="here"), rank=3))

    check_init(lambda site: moved(build("vera", site=site)))
    with pytest.raises(AssertionError, match="two layers share what they drew"):
        check_init(same_everywhere)


def test_counterpart_a_constant_that_is_stored_is_seen(tmp_path):
    weight = moved(build("vera", plain((80, 96))))
    check_packs(weight, tmp_path)
    broken = of(changed(roles={**Vera.roles, "base": Role.DRAWN}), weight)
    with pytest.raises(Exception, match="base"):  # what was learned is not in the file
        check_packs(broken, tmp_path)
