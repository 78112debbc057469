"""Rules put weights of other kinds in place of kernels: inside out, first match of a kind, errors name the rule."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import freezejax
from freezejax import models
from freezejax.paths import leaf_paths
from freezejax.roles import is_weight
from freezejax.weights import GainWeight, LoraWeight, MapWeight, RandomMap, count_seeded, maps_of
from tests.models.conftest import SMALL

KEY, BASE = jax.random.key(0), jax.random.key(100)
EVERY_KERNEL = ".*/kernel"
GATE_UP = r"blocks/\d+/mlp/(gate|up)/kernel"


def build(family="geglu", **changes):
    return models.build(family, **{**SMALL[family], **changes})


def maps(pattern, **options):
    return {"pattern": pattern, "kind": "map", **options}


def gain(pattern):
    return {"pattern": pattern, "kind": "gain"}


# Default ranks are above what such small kernels have use for.
pytestmark = pytest.mark.filterwarnings("ignore:.*a low rank saves something below")


def lora(pattern, **options):
    return {"pattern": pattern, "kind": "lora", **options}


def by_path(params):
    """Path of the kernel (or other leaf) -> array or weight."""
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_weight)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def dense(params):
    """The same weights as plain arrays."""

    def merge(leaf):
        if isinstance(leaf, LoraWeight):
            return merge(leaf.base) + leaf.alpha / leaf.a.shape[1] * leaf.a @ leaf.b
        if isinstance(leaf, GainWeight):
            return merge(leaf.base) * leaf.gain[None]
        return leaf.materialize() if isinstance(leaf, MapWeight) else leaf

    return jax.tree.map(merge, params, is_leaf=is_weight)


def moved(params):
    """Trained leaves away from their initial ones and zeros."""

    def move(leaf):
        return leaf if leaf.dtype == jnp.uint32 else leaf + 0.1 * np.cos(np.arange(leaf.size)).reshape(leaf.shape)

    return jax.tree.map(move, jax.tree.map(np.asarray, params))


def test_of_each_kind_the_first_rule_that_matches_wins():
    rules = [
        maps("blocks/0/mlp/gate/kernel", distribution="rademacher", scale=0.5),
        maps(GATE_UP, distribution="hadamard"),
        lora("blocks/1/.*", rank=2, alpha=4.0),
        lora(".*/(gate|qkv)/kernel", rank=3),
    ]
    found = by_path(build(weights=rules).init(KEY))
    map_of = {path: getattr(leaf, "base", leaf) for path, leaf in found.items()}
    assert {path: leaf.map for path, leaf in map_of.items() if isinstance(leaf, MapWeight)} == {
        "blocks/0/mlp/gate/kernel": RandomMap((24, 48), "rademacher", 0.5, "blocks/0/mlp/gate/kernel"),
        "blocks/0/mlp/up/kernel": RandomMap((24, 48), "hadamard", name="blocks/0/mlp/up/kernel"),
        "blocks/1/mlp/gate/kernel": RandomMap((24, 48), "hadamard", name="blocks/1/mlp/gate/kernel"),
        "blocks/1/mlp/up/kernel": RandomMap((24, 48), "hadamard", name="blocks/1/mlp/up/kernel"),
    }
    ranks = {path: (leaf.a.shape[1], leaf.alpha) for path, leaf in found.items() if isinstance(leaf, LoraWeight)}
    in_block_1 = {f"blocks/1/{name}/kernel": (2, 4.0) for name in ("attn/qkv", "attn/out")}
    in_block_1 |= {f"blocks/1/mlp/{name}/kernel": (2, 4.0) for name in ("gate", "up", "down")}
    assert ranks == {**in_block_1, "blocks/0/mlp/gate/kernel": (3, 3.0), "blocks/0/attn/qkv/kernel": (3, 3.0)}


def test_the_leaves_have_the_documented_paths():
    model = build(num_layers=1, weights=[maps(GATE_UP), gain(GATE_UP), lora(".*/up/kernel")])
    paths = [path for path in leaf_paths(jax.eval_shape(model.init, KEY)) if "/mlp/" in path]
    gate, up = "blocks/0/mlp/gate/kernel", "blocks/0/mlp/up/kernel"
    wanted = ["blocks/0/mlp/down/kernel", f"{gate}/base/seed", f"{gate}/gain"]
    assert sorted(paths) == [*wanted, f"{up}/a", f"{up}/b", f"{up}/base/base/seed", f"{up}/base/gain"]


def test_without_rules_the_model_is_the_plain_one():
    for empty in ((), [], None):
        chex.assert_trees_all_equal(build(weights=empty).init(KEY, BASE), build().init(KEY))


def test_rules_come_from_json_and_from_config_dicts():
    rule = maps(GATE_UP, distribution="rademacher", scale="none", trained=False)
    expected = jax.eval_shape(build(weights=[rule]).init, KEY)
    for rules in (json.loads(json.dumps([rule])), (ConfigDict(rule),), ConfigDict({"weights": [rule]}).weights):
        assert jax.tree.structure(jax.eval_shape(build(weights=rules).init, KEY)) == jax.tree.structure(expected)


def test_shapes_are_known_without_drawing(family):
    model = build(family, weights=[maps(EVERY_KERNEL), gain(EVERY_KERNEL), lora(EVERY_KERNEL)])
    abstract, params = jax.eval_shape(model.init, KEY), model.init(KEY, BASE)
    assert jax.tree.structure(abstract) == jax.tree.structure(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, params)
    kernels = [leaf for path, leaf in by_path(build(family).init(KEY)).items() if path.endswith("/kernel")]
    assert count_seeded(params) == count_seeded(abstract) == sum(kernel.size for kernel in kernels)
    seeds = {leaf.seed.tobytes() for leaf in maps_of(jax.tree.map(np.asarray, params))}
    assert seeds == {np.asarray(jax.random.key_data(BASE)).tobytes()}


@pytest.mark.parametrize(
    ("family", "dtype", "tolerance"),
    [("geglu", "bfloat16", 0.05), ("parameter_golf", "float32", 1e-5)],
)
def test_logits_are_those_of_the_same_weights_stored(family, tokens, dtype, tolerance):
    seeded = ".*/(attn/out|up|attn/proj|fc)/kernel"
    adapted = lora(".*/attn/(proj|out)/kernel", rank=2, alpha=3.0)
    model = build(family, num_layers=1, weights=[maps(seeded), gain(seeded), adapted])
    params = moved(model.init(KEY, BASE))
    apply = jax.jit(model.apply, static_argnames="compute_dtype")
    found, expected = (apply(tree, tokens, compute_dtype=dtype) for tree in (params, dense(params)))
    assert np.abs(found).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("distribution", ["normal", "orthogonal_qr"])
@pytest.mark.parametrize("scale", ["fan_in", 0.3])
def test_the_trained_control_starts_with_the_bits_of_the_map(distribution, scale):
    rule = maps(GATE_UP, distribution=distribution, scale=scale)
    seeded, control = (build(weights=[{**rule, "trained": t}]).init(KEY, BASE) for t in (False, True))
    assert count_seeded(control) == 0
    chex.assert_trees_all_equal(dense(seeded), control)
    assert leaf_paths(control) == leaf_paths(build().init(KEY))


def changed(one, other):
    """Paths of the leaves that differ."""
    pairs = zip(leaf_paths(one), jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return {path for path, a, b in pairs if not np.array_equal(a, b)}


def test_base_seed_and_training_seed_are_separate():
    seeded = [maps(".*/gate/kernel"), gain(".*/gate/kernel"), maps(".*/up/kernel", trained=True)]
    init = build(weights=[*seeded, lora(".*/(gate|down)/kernel")]).init
    start = init(KEY, BASE)
    of_maps = {path for path in leaf_paths(start) if path.endswith(("/seed", "/up/kernel"))}
    constant = {path for path in leaf_paths(start) if path.endswith(("/scale", "/gain", "/b"))}
    assert changed(start, init(KEY, jax.random.key(101))) == of_maps
    assert changed(start, init(jax.random.key(1), BASE)) == set(leaf_paths(start)) - of_maps - constant
    assert not changed(init(KEY), init(KEY, KEY))


def test_adding_a_layer_changes_no_other_map():
    weights = [maps(".*/(gate|qkv)/kernel"), lora(".*/up/kernel")]
    small, large = (build(num_layers=layers, weights=weights).init(KEY, BASE) for layers in (1, 2))
    chex.assert_trees_all_equal(dense(small)["blocks"][0], dense(large)["blocks"][0])
    gates = [np.asarray(dense(large)["blocks"][i]["mlp"]["gate"]["kernel"]) for i in (0, 1)]
    assert abs(np.mean(gates[0] * gates[1])) * 24 < 0.2  # layers of one model do not share a map


def test_an_adapted_model_starts_as_its_base():
    rules = [maps(".*/up/kernel")]
    plain, adapted = (build(weights=[*rules, *more]).init(KEY, BASE) for more in ([], [lora(EVERY_KERNEL)]))
    chex.assert_trees_all_equal(dense(adapted), dense(plain))


def test_the_gradient_of_an_adapted_model_reaches_the_adapters_alone(tokens):
    model = build(num_layers=1, weights=[maps(".*/up/.*"), lora(EVERY_KERNEL, rank=2)])
    params = model.init(KEY, BASE)
    mask = freezejax.trainable_mask(params, [(".*/(a|b)", True), (".*", False)])
    gradient = jax.jit(freezejax.value_and_grad(lambda p: jnp.mean(jnp.square(model.apply(p, tokens))), mask))
    _, grads = gradient(params)
    norms = dict(zip(leaf_paths(grads), (float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)), strict=True))
    kernels = {path for path in leaf_paths(build(num_layers=1).init(KEY)) if path.endswith("/kernel")}
    assert set(norms) == {f"{kernel}/{leaf}" for kernel in kernels for leaf in "ab"}
    assert all(norm > 0 if path.endswith("/b") else norm == 0 for path, norm in norms.items())  # b starts at zero


def test_alpha_over_rank_scales_the_adapter():
    base, a, b = (jnp.cos(jnp.arange(size).reshape(shape)) for size, shape in ((24, (4, 6)), (8, (4, 2)), (12, (2, 6))))
    x = jnp.sin(jnp.arange(12.0).reshape(3, 4))
    expected = x @ base + 1.5 * (x @ a) @ b
    np.testing.assert_allclose(LoraWeight(base, a, b, alpha=3.0)(x), expected, atol=1e-5)


def test_a_gain_stands_over_any_weight():
    model = build(num_layers=1, weights=[gain(".*/down/kernel"), lora(".*/up/kernel", rank=2), gain(".*/up/kernel")])
    mlp = model.init(KEY)["blocks"][0]["mlp"]
    assert isinstance(mlp["down"]["kernel"].base, jax.Array)
    assert isinstance(mlp["up"]["kernel"].base, LoraWeight)


OVER = "a map takes the place of the kernel: let its rule stand before those of adapters"
NO_MATCH = r"pattern '.*' matches no kernel; nearest: blocks/0/mlp/up/kernel"
BAD_RULES = {
    "unknown option of a map": (
        maps(GATE_UP, distrib="normal"),
        r"\(kind map\) has no option 'distrib'; nearest: ",
    ),
    "unknown option of an adapter": (lora(GATE_UP, ranks=2), r"\(kind lora\) has no option 'ranks'; nearest: rank"),
    "an option of no gain": ({**gain(GATE_UP), "rank": 2}, r"\(kind gain\) has no option 'rank'; there are none"),
    "number for a key": ({**maps(GATE_UP), 3: 4}, "has no option '3'"),
    "no kind": (
        {"pattern": GATE_UP},
        "kind is missing: expected one of map, ",
    ),
    "misspelt kind": (
        {"pattern": GATE_UP, "kind": "lorra"},
        "kind='lorra': expected one of map, .*; nearest: lora",
    ),
    "list for a kind": (
        {"pattern": GATE_UP, "kind": ["map"]},
        "expected one of map, ",
    ),
    "no match, map": (maps("blocks/0/mlp/upp/kernel"), NO_MATCH),
    "no match, adapter": (lora("block/0/mlp/up/kernel"), NO_MATCH),
    "not a kernel": (maps("tok_emb/embedding"), "matches no kernel"),
    "not the whole path": (maps("mlp/up"), "matches no kernel"),
    "broken pattern": (maps("(gate"), r"'\(gate' is not a regular expression"),
    "no pattern": ({"kind": "lora", "rank": 3}, "pattern=None must be a regular expression"),
    "number for a pattern": (maps(3), "pattern=3 must be a regular expression"),
    "number for a distribution": (maps(GATE_UP, distribution=3), "blocks/0/mlp/gate/kernel': no distribution 3"),
    "list for a distribution": (maps(GATE_UP, distribution=["normal"]), r"no distribution \['normal'\]; nearest"),
    "misspelt distribution": (maps(GATE_UP, distribution="rademaker"), "nearest: rademacher"),
    "misspelt scale": (maps(GATE_UP, scale="fanin"), "scale='fanin' must be 'fan_in', 'none' or a number"),
    "a gain as the scale of a map": (maps(GATE_UP, scale="gain"), "scale='gain' must be 'fan_in', 'none' or a number"),
    "word for trained": (maps(GATE_UP, trained="no"), "trained='no' must be true or false"),
    "string for a rule": (GATE_UP, r"weights\[0\]=.* must be a mapping"),
}
BAD_RULES |= {f"scale={s}": (maps(GATE_UP, scale=s), "scale=.* must be 'fan_in'") for s in (True, 0, -1, [1], {})}
BAD_RULES |= {f"rank={r}": (lora(GATE_UP, rank=r), "rank=.* an integer of at least 1") for r in ("x", 0, 1.5, True)}
BAD_RULES |= {f"alpha={a}": (lora(GATE_UP, alpha=a), "alpha=.* a finite number above 0") for a in ("x", 0, True)}
BAD_CONFIGS = {
    **{name: ({"weights": [rule]}, message) for name, (rule, message) in BAD_RULES.items()},
    "mapping for a list": ({"weights": maps(GATE_UP)}, "weights=.* must be a list of rules"),
    "string for a list": ({"weights": "blocks"}, "weights='blocks' must be a list of rules"),
    "number for a list": ({"weights": 3}, "weights=3 must be a list of rules"),
    "a map over an adapter": (
        {"weights": [lora(GATE_UP), maps(GATE_UP)]},
        r"weights\[1\] \(kind map\), kernel .*" + OVER,
    ),
    "the second of two": (
        {"weights": [gain(GATE_UP), lora(GATE_UP, rank=0)]},
        r"weights\[1\] \(kind lora\), kernel 'blocks/0",
    ),
    "maps, as it was": (
        {"maps": [{"pattern": GATE_UP}]},
        r"maps=.* is now weights=\[{'pattern': ..., 'kind': 'map'}\]",
    ),
    "lora, as it was": (
        {"lora": [{"pattern": GATE_UP}]},
        r"lora=.* is now weights=\[{'pattern': ..., 'kind': 'lora'}\]",
    ),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_rules_are_told_when_the_model_is_built(name, check_refused):
    config, message = BAD_CONFIGS[name]
    check_refused(lambda: build(**config), message)
