"""Rules put maps and adapters in place of kernels: the first match wins, seeds stay apart, errors name the rule."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from freezejax.weights.rules import LoraRule, MapRule
from ml_collections import ConfigDict

import freezejax
from freezejax import UserError, models
from freezejax.paths import leaf_paths
from freezejax.weights import MapWeight, RandomMap, count_seeded, map_weights
from freezejax.weights.lora import LoraWeight
from tests.models.conftest import SMALL

KEY, ROOT = jax.random.key(0), jax.random.key(100)
EVERY_KERNEL = ".*/kernel"
GATE_UP = r"blocks/\d+/mlp/(gate|up)/kernel"


def build(family="geglu", **changes):
    return models.build(family, **{**SMALL[family], **changes})


def is_weight(leaf):
    return isinstance(leaf, MapWeight | LoraWeight)


def by_path(params):
    """Path of the kernel (or other leaf) -> array, MapWeight or LoraWeight."""
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_weight)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def dense(params):
    """The same weights as plain arrays."""

    def merge(leaf):
        if isinstance(leaf, LoraWeight):
            return merge(leaf.base) + leaf.alpha / leaf.a.shape[1] * leaf.a @ leaf.b
        return leaf.materialize() if isinstance(leaf, MapWeight) else leaf

    return jax.tree.map(merge, params, is_leaf=is_weight)


def moved(params):
    """Trained leaves away from their initial ones and zeros."""

    def move(leaf):
        return leaf if leaf.dtype == jnp.uint32 else leaf + 0.1 * np.cos(np.arange(leaf.size)).reshape(leaf.shape)

    return jax.tree.map(move, jax.tree.map(np.asarray, params))


def test_the_first_rule_that_matches_wins():
    rules = [
        {"pattern": "blocks/0/mlp/gate/kernel", "distribution": "rademacher", "scale": 0.5},
        {"pattern": GATE_UP, "distribution": "hadamard"},
    ]
    lora = [{"pattern": "blocks/1/.*", "rank": 2, "alpha": 4.0}, {"pattern": ".*/(gate|qkv)/kernel", "rank": 3}]
    found = by_path(build(maps=rules, lora=lora).init(KEY))
    map_of = {path: getattr(leaf, "base", leaf) for path, leaf in found.items()}
    maps = {path: leaf.map for path, leaf in map_of.items() if isinstance(leaf, MapWeight)}
    assert maps == {
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
    model = build(num_layers=1, maps=[{"pattern": GATE_UP, "scale": "gain"}], lora=[{"pattern": ".*/up/kernel"}])
    paths = [path for path in leaf_paths(jax.eval_shape(model.init, KEY)) if "/mlp/" in path]
    gate, up = "blocks/0/mlp/gate/kernel", "blocks/0/mlp/up/kernel"
    wanted = ["blocks/0/mlp/down/kernel", f"{gate}/gain", f"{gate}/root"]
    assert sorted(paths) == [*wanted, f"{up}/a", f"{up}/b", f"{up}/base/gain", f"{up}/base/root"]


def test_without_rules_the_model_is_the_plain_one():
    for empty in ((), [], None):
        chex.assert_trees_all_equal(build(maps=empty, lora=empty).init(KEY, ROOT), build().init(KEY))


def test_rules_come_from_json_and_from_config_dicts():
    rule = {"pattern": GATE_UP, "distribution": "rademacher", "scale": "none", "trained": False}
    expected = jax.eval_shape(build(maps=[rule]).init, KEY)
    for rules in (json.loads(json.dumps([rule])), (ConfigDict(rule),), ConfigDict({"maps": [rule]}).maps):
        assert jax.tree.structure(jax.eval_shape(build(maps=rules).init, KEY)) == jax.tree.structure(expected)


def test_shapes_are_known_without_drawing(family):
    model = build(family, maps=[{"pattern": EVERY_KERNEL, "scale": "gain"}], lora=[{"pattern": EVERY_KERNEL}])
    abstract, params = jax.eval_shape(model.init, KEY), model.init(KEY, ROOT)
    assert jax.tree.structure(abstract) == jax.tree.structure(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, params)
    kernels = [leaf for path, leaf in by_path(build(family).init(KEY)).items() if path.endswith("/kernel")]
    assert count_seeded(params) == count_seeded(abstract) == sum(kernel.size for kernel in kernels)
    roots = {leaf.root.tobytes() for leaf in map_weights(jax.tree.map(np.asarray, params))}
    assert roots == {np.asarray(jax.random.key_data(ROOT)).tobytes()}


@pytest.mark.parametrize(
    ("family", "dtype", "tolerance"),
    [("geglu", "bfloat16", 0.05), ("parameter_golf", "float32", 1e-5)],
)
def test_logits_are_those_of_the_same_weights_stored(family, tokens, dtype, tolerance):
    maps = [{"pattern": ".*/(attn/out|up|attn/proj|fc)/kernel", "scale": "gain"}]
    lora = [{"pattern": ".*/attn/(proj|out)/kernel", "rank": 2, "alpha": 3.0}]
    model = build(family, num_layers=1, maps=maps, lora=lora)
    params = moved(model.init(KEY, ROOT))
    apply = jax.jit(model.apply, static_argnames="compute_dtype")
    found, expected = (apply(tree, tokens, compute_dtype=dtype) for tree in (params, dense(params)))
    assert np.abs(found).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("distribution", ["normal", "orthogonal_qr"])
@pytest.mark.parametrize("scale", ["fan_in", "gain"])
def test_the_trained_control_starts_with_the_bits_of_the_map(distribution, scale):
    rule = {"pattern": GATE_UP, "distribution": distribution, "scale": scale}
    seeded, control = (build(maps=[{**rule, "trained": t}]).init(KEY, ROOT) for t in (False, True))
    assert count_seeded(control) == 0
    chex.assert_trees_all_equal(dense(seeded), control)
    assert leaf_paths(control) == leaf_paths(build().init(KEY))


def changed(one, other):
    """Paths of the leaves that differ."""
    pairs = zip(leaf_paths(one), jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return {path for path, a, b in pairs if not np.array_equal(a, b)}


def test_base_seed_and_training_seed_are_separate():
    maps = [{"pattern": ".*/gate/kernel", "scale": "gain"}, {"pattern": ".*/up/kernel", "trained": True}]
    init = build(maps=maps, lora=[{"pattern": ".*/(gate|down)/kernel"}]).init
    start = init(KEY, ROOT)
    of_maps = {path for path in leaf_paths(start) if path.endswith(("/root", "/up/kernel"))}
    constant = {path for path in leaf_paths(start) if path.endswith(("/scale", "/gain", "/b"))}
    assert changed(start, init(KEY, jax.random.key(101))) == of_maps
    assert changed(start, init(jax.random.key(1), ROOT)) == set(leaf_paths(start)) - of_maps - constant
    assert not changed(init(KEY), init(KEY, KEY))


def test_adding_a_layer_changes_no_other_map():
    maps, lora = [{"pattern": ".*/(gate|qkv)/kernel"}], [{"pattern": ".*/up/kernel"}]
    small, large = (build(num_layers=layers, maps=maps, lora=lora).init(KEY, ROOT) for layers in (1, 2))
    chex.assert_trees_all_equal(dense(small)["blocks"][0], dense(large)["blocks"][0])
    gates = [np.asarray(dense(large)["blocks"][i]["mlp"]["gate"]["kernel"]) for i in (0, 1)]
    assert abs(np.mean(gates[0] * gates[1])) * 24 < 0.2  # layers of one model do not share a map


def test_an_adapted_model_starts_as_its_base():
    maps = [{"pattern": ".*/up/kernel"}]
    plain, adapted = (build(maps=maps, lora=lora).init(KEY, ROOT) for lora in ([], [{"pattern": EVERY_KERNEL}]))
    chex.assert_trees_all_equal(dense(adapted), dense(plain))


def test_the_gradient_of_an_adapted_model_reaches_the_adapters_alone(tokens):
    model = build(num_layers=1, maps=[{"pattern": ".*/up/.*"}], lora=[{"pattern": EVERY_KERNEL, "rank": 2}])
    params = model.init(KEY, ROOT)
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


def _one(**rule):
    return {"pattern": GATE_UP, **rule}


NO_MATCH = r"pattern '.*' matches no kernel; nearest: blocks/0/mlp/up/kernel"
BAD_RULES = {
    "unknown key of a map": ({"maps": [_one(distrib="normal")]}, "MapRule has no field 'distrib'; nearest: distribut"),
    "unknown key of an adapter": ({"lora": [_one(ranks=2)]}, "LoraRule has no field 'ranks'; nearest: rank"),
    "number for a key": ({"maps": [{3: 4}]}, "MapRule has no field '3'"),
    "no match, map": ({"maps": [{"pattern": "blocks/0/mlp/upp/kernel"}]}, "maps: " + NO_MATCH),
    "no match, adapter": ({"lora": [{"pattern": "block/0/mlp/up/kernel"}]}, "lora: " + NO_MATCH),
    "not a kernel": ({"maps": [{"pattern": "tok_emb/embedding"}]}, "matches no kernel"),
    "not the whole path": ({"maps": [{"pattern": "mlp/up"}]}, "matches no kernel"),
    "broken pattern": ({"maps": [{"pattern": "(gate"}]}, r"'\(gate' is not a regular expression"),
    "no pattern": ({"lora": [{"rank": 3}]}, "LoraRule.pattern=None must be a regular expression"),
    "number for a pattern": ({"maps": [{"pattern": 3}]}, "MapRule.pattern=3 must be a regular expression"),
    "number for a distribution": ({"maps": [_one(distribution=3)]}, "blocks/0/mlp/gate/kernel': no distribution 3"),
    "list for a distribution": ({"maps": [_one(distribution=["normal"])]}, r"no distribution \['normal'\]; nearest"),
    "misspelt distribution": ({"maps": [_one(distribution="rademaker")]}, "nearest: rademacher"),
    "misspelt scale": ({"maps": [_one(scale="fanin")]}, "scale='fanin' must be 'fan_in', 'gain', 'none' or a number"),
    "word for trained": ({"maps": [_one(trained="no")]}, "MapRule.trained='no' must be true or false"),
    "mapping for a list": ({"maps": _one()}, "maps=.* must be a list of rules"),
    "string for a list": ({"lora": "blocks"}, "lora='blocks' must be a list of rules"),
    "number for a list": ({"maps": 3}, "maps=3 must be a list of rules"),
    "string for a rule": ({"maps": [GATE_UP]}, "maps: rule .* must be a mapping"),
}
BAD_RULES |= {f"scale={s}": ({"maps": [_one(scale=s)]}, "scale=.* must be 'fan_in'") for s in (True, 0, -1, [1], {})}
BAD_RULES |= {f"rank={r}": ({"lora": [_one(rank=r)]}, "rank=.* an integer of at least 1") for r in ("x", 0, 1.5, True)}
BAD_RULES |= {f"alpha={a}": ({"lora": [_one(alpha=a)]}, "alpha=.* a finite number above 0") for a in ("x", 0, True)}


@pytest.mark.parametrize("name", BAD_RULES)
def test_bad_rules_are_told_when_the_model_is_built(name):
    rules, message = BAD_RULES[name]
    with pytest.raises(UserError, match=message) as caught:
        build(**rules)
    assert "\n" not in str(caught.value)


def test_rules_are_values():
    assert MapRule(GATE_UP) == MapRule(GATE_UP, "normal", "fan_in", False)
    assert LoraRule(GATE_UP).rank == 16
