"""Every kind of weight, in one table, put through one contract; a toy kind known to this file alone passes it whole.

The contract is what the rest of the library relies on, and nothing else: a kind that keeps it can be trained, frozen,
laid on a mesh, packed, loaded and described with no line changed elsewhere. Broken kinds show that each clause is read.
"""

import dataclasses
import functools
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freezejax import UserError, artifact, freeze, models, trainable_mask
from freezejax.roles import Role, Weight
from freezejax.training.config import OptimizerConfig
from freezejax.training.optimizers import make_optimizer
from freezejax.weights import KINDS, MapWeight, RandomMap, Site, linear, matrix
from tests.weights.contract import (
    BASE_KEY,
    CLAUSES,
    KEY,
    SITE,
    bits,
    check_described,
    check_init,
    check_packs,
    check_product,
    check_roles,
    check_shapes_are_known_without_numbers,
    moved,
    plain,
)

OPTIONS = {
    "map": {"distribution": "uniform"},
    "lowbit": {"bits": 2},
    "crystal": {"rank": 3},
    "gain": {},
    "scalar": {},
    "scale_shift": {},
    "lora": {"rank": 3, "alpha": 2.0},
    "dora": {"rank": 3, "rank_stabilised": True},
    "vera": {"rank": 5},
    "randlora": {"rank": 5},
    "supermask": {"keep": 0.3},
    "toy": {"rank": 3},
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Toy(Weight):
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
    monkeypatch.setitem(KINDS, "toy", Toy.make)  # the one line


ALL_KINDS = list(OPTIONS)
every_kind = pytest.mark.parametrize("kind", ALL_KINDS)


def test_the_table_has_every_kind():
    # What another block's weight is: see test_shared.py; a stack taken apart: test_stack.py.
    assert set(ALL_KINDS) | {"shared", "each"} == set(KINDS)


def build(kind, kernel=None, site=SITE):
    return KINDS[kind](plain() if kernel is None else kernel, site, **OPTIONS[kind])


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
@pytest.mark.parametrize(
    "inner", ["map", "lowbit", "crystal", "lora", "scale_shift", "supermask"]
)  # of each way to be a weight, one
def test_every_kind_stands_over_others_or_says_why_not(kind, inner):
    under = moved(build(inner))
    if kind in ("map", "lowbit") or (kind, inner) == ("supermask", "scale_shift"):
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
    params = {"up": {"kernel": moved(build("toy"))}}
    mask = trainable_mask(params, [(".*", True)])
    state = freeze(make_optimizer(OptimizerConfig(name="muon"), lambda count: jnp.ones([])), mask).init(params)
    text = {jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    second = {path.rpartition(".nu")[2] for path in text if ".nu" in path}
    assert second == {"['up']['kernel'].diagonal", "['up']['kernel'].gain"}


def test_the_kind_that_contributing_shows_keeps_the_contract():
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    diff = text.split("+++ freezejax/weights/diagonal.py\n")[1].split("+++ ")[0]
    module = ModuleType("diagonal")
    exec("".join(line[1:] + "\n" for line in diff.splitlines()), vars(module))
    weight = moved(module.DiagonalWeight.make(plain(), SITE))
    for check in CLAUSES.values():
        check(weight)


# Counterparts: kinds that break one clause each.


def changed(**methods):
    """The toy with some of its methods or its roles exchanged."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(type("Broken", (Toy,), methods)))


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
    "a role has no field": ("roles", {"roles": {**Toy.roles, "c": Role.GAIN}}, AssertionError),
    "shape from numbers": ("shapes", {"shape": property(lambda self: np.asarray(self.base).shape)}, AssertionError),
    "a learned leaf is called constant": ("described", {"roles": {**Toy.roles, "gain": Role.DRAWN}}, AssertionError),
    "the adapter is cut off the gradient": (
        "trains",
        {"__call__": lambda self, x: linear(x, jax.lax.stop_gradient(self.materialize()))},
        AssertionError,
    ),
    "an adapter goes for a kernel": ("shards", {"roles": {**Toy.roles, "diagonal": Role.KERNEL}}, Exception),
    "the kernel lies whole": ("shards", {"roles": {**Toy.roles, "base": Role.VECTOR}}, AssertionError),
    "the kernel is read, not used": (
        "shards",
        {"__call__": lambda self, x: x @ self.base + _scaled(self.up(_scaled(self.down(x), self.diagonal)), self.gain)},
        Exception,
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_counterpart_a_broken_kind_is_seen(name):
    clause, methods, error = BROKEN[name]
    weight = moved(build("toy"))
    CLAUSES[clause](weight)  # it is what was changed that is seen
    with pytest.raises(error):
        CLAUSES[clause](of(changed(**methods), weight))


def test_counterpart_two_layers_that_share_their_draw_are_seen():
    def same_everywhere(site):
        return moved(Toy.make(plain(), site._replace(path="here"), rank=3))

    check_init(lambda site: moved(build("toy", site=site)))
    with pytest.raises(AssertionError, match="two layers share what they drew"):
        check_init(same_everywhere)


def test_counterpart_a_constant_that_is_stored_is_seen(tmp_path):
    weight = moved(build("toy", plain((80, 96))))
    check_packs(weight, tmp_path)
    broken = of(changed(roles={**Toy.roles, "base": Role.DRAWN}), weight)
    with pytest.raises(Exception, match="base"):  # what was learned is not in the file
        check_packs(broken, tmp_path)
