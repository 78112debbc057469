"""Adapters compute their papers' formulas, merge and unmerge, and train as many numbers as the papers say.

The formulas are written in numpy and float64, by hand, from stored matrices [in, out]; PEFT's own figures for whole
models are in test_peft.py.
"""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezejax import UserError
from freezejax.roles import Role, leaves
from freezejax.weights import KINDS, LoraWeight, MapWeight, RandomMap, Site, attach, betas_of, matrix, merge, unmerge
from tests.weights.contract import BASE_KEY, KEY, SITE, moved, plain

ADDED = {"lora": {"rank": 3, "alpha": 2.0}, "vera": {"rank": 5}, "randlora": {"rank": 5}}
FACTORS = {"gain": {}, "scalar": {}, "dora": {"rank": 3}}
MERGED = ADDED | FACTORS
SIDES = {"wide": (12, 20), "tall": (20, 12), "square": (12, 12)}


def build(kind, base=None, site=SITE, **options):
    return KINDS[kind](plain() if base is None else base, site, **{**MERGED.get(kind, {}), **options})


def numbers(weight):
    """Its fields in float64; maps as the matrices they stand for."""
    return {
        field.name: np.asarray(matrix(value), np.float64)
        for field in dataclasses.fields(weight)
        if not field.metadata.get("static") and (value := getattr(weight, field.name)) is not None
    }


def lora(n, scale):
    return n["base"] + scale * n["a"] @ n["b"]


def randlora(n):
    terms, rank = n["lambdas"].shape
    found = n["base"].copy()
    for j in range(terms):
        found += np.diag(n["gammas"][j]) @ n["a"] @ np.diag(n["lambdas"][j]) @ n["b"][j * rank : (j + 1) * rank]
    return found


def dora(n, scale):
    turned = lora(n, scale)
    return n["magnitude"] * turned / np.sqrt(np.sum(turned**2, axis=0, keepdims=True))


FORMULAS = {
    "lora": ("lora", {}, lambda n: lora(n, 2.0 / 3)),
    "lora, rank-stabilised": ("lora", {"rank_stabilised": True}, lambda n: lora(n, 2.0 / np.sqrt(3))),
    "dora": ("dora", {"alpha": 2.0}, lambda n: dora(n, 2.0 / 3)),
    "vera": ("vera", {}, lambda n: n["base"] + n["a"] @ np.diag(n["d"]) @ n["b"] @ np.diag(n["g"])),
    "vera, scalars": (
        "vera",
        {"scalars": True},
        lambda n: n["base"] + n["a"] @ np.diag(n["d"] * n["g"]) @ n["b"] / len(n["d"]),
    ),
    "randlora": ("randlora", {}, randlora),
    "gain": ("gain", {}, lambda n: n["base"] @ np.diag(n["gain"])),
    "scalar": ("scalar", {}, lambda n: n["beta"] * n["base"]),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", FORMULAS)
def test_each_computes_the_formula_of_its_paper(name, side):
    kind, options, formula = FORMULAS[name]
    start = build(kind, plain(SIDES[side]), **options)
    np.testing.assert_allclose(start.materialize(), matrix(start.base), atol=1e-6)  # it starts as its base
    weight = moved(start)
    wanted = formula(numbers(weight))
    assert np.abs(wanted - numbers(weight)["base"]).max() > 1e-4
    np.testing.assert_allclose(weight.materialize(), wanted, atol=1e-6)
    x = np.random.default_rng(1).normal(size=(5, SIDES[side][0]))
    np.testing.assert_allclose(weight(jnp.asarray(x, jnp.float32)), x @ wanted, atol=1e-5)


def test_a_scale_and_a_shift():
    weight = moved(build("scale_shift"))
    n = numbers(weight)
    x = np.random.default_rng(1).normal(size=(2, 3, 12))
    found = weight(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, (x @ n["base"]) * n["gain"] + n["shift"], atol=1e-5)
    with pytest.raises(UserError, match="adds a shift, which is no part of a matrix"):
        merge({"up": weight})


COUNTS = {  # of a kernel [12, 20]
    ("lora", "rank", 3): 3 * (12 + 20),
    ("dora", "rank", 3): 3 * (12 + 20) + 20,
    ("vera", "rank", 5): 5 + 20,
    ("vera", "scalars", True): 2 * 5,
    ("randlora", "rank", 5): 3 * (12 + 5),
    ("randlora", "terms", 2): 2 * (12 + 5),
    ("gain", None, None): 20,
    ("scalar", None, None): 1,
    ("scale_shift", None, None): 2 * 20,
}


@pytest.mark.parametrize(("kind", "option", "value"), COUNTS)
def test_each_trains_and_stores_as_many_numbers_as_its_paper_says(kind, option, value):
    weight = build(kind, **({} if option is None else {option: value}))
    beside = [leaf for leaf in leaves(weight) if not leaf.role.constant and leaf.path != "base"]
    assert sum(leaf.value.size for leaf in beside) == COUNTS[kind, option, value]
    assert {leaf.role for leaf in beside} <= {Role.ADAPTER, Role.GAIN}


def test_vera_shares_its_matrices_between_layers_of_equal_sides_and_nothing_else():
    other = SITE._replace(path="blocks/1/mlp/up/kernel")
    one, same, wider = build("vera"), build("vera", site=other), build("vera", plain((12, 28)), site=other)
    chex.assert_trees_all_equal(numbers(one), numbers(same))
    np.testing.assert_array_equal(matrix(one.a), matrix(wider.a))
    drawn = build("vera", site=Site(SITE.path, KEY, KEY))
    assert not np.array_equal(matrix(one.a), matrix(drawn.a))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("inner", [None, "map", "gain"])
@pytest.mark.parametrize("kind", MERGED)
def test_merging_gives_one_matrix_and_unmerging_the_base(kind, inner, side):
    base = plain(SIDES[side])
    if inner == "map":
        base = MapWeight.create(RandomMap(SIDES[side], name="up"), BASE_KEY)
    elif inner:
        base = moved(build(inner, base))
    params = {"up": {"kernel": moved(build(kind, base))}, "norm": jnp.ones(3)}
    merged = merge(params)
    np.testing.assert_allclose(merged["up"]["kernel"], params["up"]["kernel"].materialize(), rtol=1e-6)
    assert merged["norm"] is params["norm"]
    back = unmerge(merged, params)
    found, wanted = back["up"]["kernel"].base, params["up"]["kernel"].base
    if inner == "gain":
        found, wanted = found.base, wanted.base
    np.testing.assert_allclose(found, matrix(wanted), atol=1e-5)
    np.testing.assert_allclose(back["up"]["kernel"].materialize(), merged["up"]["kernel"], atol=1e-5)
    if side == "square":  # counterpart: the wrong side of a square matrix has its shape
        turned = unmerge(jax.tree.map(lambda x: x.T if x.ndim == 2 else x, merged), params)
        assert np.abs(np.asarray(turned["up"]["kernel"].materialize()) - merged["up"]["kernel"]).max() > 1e-2


def test_merging_leaves_maps_alone_and_keeps_the_dtype():
    drawn = MapWeight.create(RandomMap((12, 20)), BASE_KEY)
    half = moved(build("lora", plain().astype(jnp.bfloat16)))
    merged = merge({"map": drawn, "half": half})
    assert merged["map"] is drawn
    assert merged["half"].dtype == jnp.bfloat16
    with pytest.raises(UserError, match="unmerge: the parameters are not those of `like`"):
        unmerge({"map": drawn}, {"half": half})


@pytest.mark.parametrize("kind", ["gain", "scalar", "dora"])
def test_what_a_factor_of_zero_hides_comes_back_from_what_it_was(kind):
    weight = moved(build(kind))
    name = {"gain": "gain", "scalar": "beta", "dora": "magnitude"}[kind]
    weight = dataclasses.replace(weight, **{name: getattr(weight, name) * 0})
    back = unmerge(merge({"up": weight}), {"up": weight})["up"]
    np.testing.assert_allclose(back.base, weight.base, atol=1e-6)


def test_a_column_of_zeros_under_dora_is_finite_and_can_learn():
    weight = build("dora", plain().at[:, 3].set(0.0))
    x = plain((5, 12), seed=2)
    loss = lambda weight: jnp.sum(jnp.sin(weight(x) + 1))  # noqa: E731
    grads = jax.grad(loss)(weight)
    chex.assert_tree_all_finite((weight(x), grads))
    np.testing.assert_array_equal(weight.materialize()[:, 3], 0)
    assert np.abs(grads.b[:, 3]).max() > 0


def test_the_lengths_of_dora_are_constants_to_the_gradient():
    """Section 4.3: as if the lengths were given. Counterpart: the gradient through them is another one."""
    weight, x = moved(build("dora")), plain((5, 12), seed=2)
    n = {name: jnp.asarray(value, jnp.float32) for name, value in numbers(weight).items()}
    given_lengths = jnp.linalg.norm(weight.base + weight.delta(), axis=0)

    def by_hand(b, lengths=None):
        turned = n["base"] + weight.scale * n["a"] @ b
        lengths = jnp.linalg.norm(turned, axis=0) if lengths is None else lengths
        return jnp.sum(jnp.sin(x @ (turned * (n["magnitude"] / lengths)[None])))

    found = jax.grad(lambda weight: jnp.sum(jnp.sin(weight(x))))(weight).b
    np.testing.assert_allclose(found, jax.grad(by_hand)(n["b"], given_lengths), atol=1e-5)
    assert np.abs(found - jax.grad(by_hand)(n["b"])).max() > 1e-3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("base", ["array", "map", "shifted"])
@pytest.mark.parametrize("rows", [3, 16])  # 3: too few to merge
def test_gradients_of_lora_are_those_of_the_formula(rows, base, dtype):
    """In numpy; the base's own too. Counterpart: without the scale they are others."""
    inner = MapWeight.create(RandomMap((12, 20), name="up"), BASE_KEY) if base == "map" else plain()
    weight = moved(build("lora", moved(build("scale_shift", inner)) if base == "shifted" else inner))
    x, grad = (plain((rows, width), seed).astype(dtype).reshape(rows, 1, width) for width, seed in ((12, 2), (20, 3)))
    y, pull = jax.vjp(lambda x, weight: weight(x), x, weight)
    x_grad, found = pull(grad)
    n, X, G = numbers(weight), *(np.asarray(z, np.float64).reshape(rows, -1) for z in (x, grad))
    wanted = {
        "y": (y, X @ lora(n, 2 / 3) + (np.asarray(weight.base.shift) if base == "shifted" else 0)),
        "x": (x_grad, G @ lora(n, 2 / 3).T),
        "a": (found.a, 2 / 3 * X.T @ G @ n["b"].T),
        "b": (found.b, 2 / 3 * (X @ n["a"]).T @ G),
    }
    if base == "array":
        wanted["base"] = (found.base, X.T @ G)
    for name, (value, expected) in wanted.items():
        assert value.dtype == (dtype if name in "xy" else jnp.float32)
        size = np.abs(expected).max()
        error = np.abs(np.asarray(value, np.float64).reshape(expected.shape) - expected).max() / size
        assert error < (1e-5 if dtype == jnp.float32 else 2e-2), name
    assert np.abs(1.5 * wanted["a"][1] - found.a).max() > 0.1 * np.abs(found.a).max()


def test_an_adapter_below_the_last_place_of_its_base_counts_in_bfloat16():
    """1 + 1e-3 is 1 in bfloat16: the sum of the matrices would have no adapter in it."""
    base = jnp.ones((2, 2), jnp.bfloat16)
    weight = LoraWeight(base, jnp.array([[1e-3], [0.0]]), jnp.ones((1, 2)), alpha=1.0)
    x = jnp.tile(jnp.array([1.0, -1.0], jnp.bfloat16), (4, 1))
    np.testing.assert_allclose(weight(x).astype(jnp.float32), 1e-3, rtol=1e-2)
    assert not jnp.any(x @ weight.materialize().astype(jnp.bfloat16))


def test_the_program_of_an_adapter_has_no_gradient_of_its_base():
    """Adapters alone train: one matmul over the rows each way, and two thin ones each for `a` and `b`."""
    shape, rows = (48, 80), 160
    weight = moved(build("lora", plain(shape)))
    loss = lambda beside, x: jnp.sum(jnp.sin(dataclasses.replace(weight, a=beside[0], b=beside[1])(x)))  # noqa: E731
    grads = jax.jit(jax.grad(loss, (0, 1))).lower((weight.a, weight.b), plain((rows, shape[0]))).compile()
    whole, thin, sums = 2 * rows * 48 * 80, 2 * rows * 3 * (48 + 80), 2 * 2 * 3 * 48 * 80
    assert 2 * whole + 2 * thin < grads.cost_analysis()["flops"] < 2 * whole + 2 * thin + sums + 0.03 * whole


def test_betas_are_told_by_kernel():
    rules = [
        {"pattern": ".*", "kind": "map"},
        {"pattern": ".*", "kind": "scalar"},
        {"pattern": "up/.*", "kind": "lora", "rank": 1},
    ]
    init = attach(lambda *_: {"up": {"kernel": plain()}, "down": {"kernel": plain((20, 12))}}, rules)
    assert betas_of(init(KEY)) == {"up/kernel": 1.0, "down/kernel": 1.0}
    assert set(map(np.float32, betas_of(moved(init(KEY))).values())) == {np.float32(1.1)}


@given(st.integers(2, 24), st.integers(2, 24), st.data())
def test_a_rank_from_which_on_nothing_is_saved_is_warned_of(width_in, width_out, data):
    """Break-even at rank mn / (m + n)."""
    rank = data.draw(st.integers(1, max(width_in, width_out)))
    experts = data.draw(st.sampled_from([(), (3,)]))  # a stack is as its matrices are
    rules = [{"pattern": ".*", "kind": "lora", "rank": rank}]
    shape = (*experts, width_in, width_out)
    build_it = lambda: attach(lambda *_: {"up": {"kernel": jnp.ones(shape)}}, rules)  # noqa: E731
    if rank * (width_in + width_out) > width_in * width_out:
        with pytest.warns(UserWarning, match="beside kernel 'up/kernel', .* a low rank saves something below") as told:
            build_it()
        assert f"the kernel's own {math.prod(shape):,}:" in str(told[0].message)
    else:
        build_it()  # warnings are errors here


BAD = {
    ("lora", "rank_stabilised", "yes"): "rank_stabilised='yes' must be true or false",
    ("dora", "rank", 0): "rank=0 must be an integer of at least 1",
    ("dora", "alpha", -1.0): "alpha=-1.0 must be a finite number above 0",
    ("vera", "rank", 2.0): "rank=2.0 must be an integer of at least 1",
    ("vera", "d_initial", 0): "d_initial=0 must be a finite number above 0",
    ("vera", "scalars", 1): "scalars=1 must be true or false",
    ("vera", "distribution", "normall"): "no distribution 'normall'",
    ("randlora", "rank", 99): "rank=99 must be at most 20",
    ("randlora", "terms", 0): "terms=0 must be an integer of at least 1",
}


@pytest.mark.parametrize(("kind", "option", "value"), BAD)
def test_bad_options_are_told_in_one_line(kind, option, value):
    with pytest.raises(UserError, match=BAD[kind, option, value]):
        build(kind, **{option: value})
