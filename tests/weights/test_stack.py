"""Stacks of matrices: every kind over every expert by itself, told apart by rules, packed, merged and sharded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import freezejax
from freezejax import UserError, artifact, models, trainable_mask
from freezejax.cost.program import trace
from freezejax.paths import by_path
from freezejax.weights import KINDS, Stack, Weight, count_seeded, matrix, merge, recast
from tests.weights import stack_program

OPTIONS = {kind: {"rank": 2} for kind in ("lora", "dora", "vera", "randlora")}
SIZES, TOKENS = stack_program.SIZES, stack_program.TOKENS
PLAIN = models.build("nemotron_h", **SIZES)
plain_logits = jax.jit(PLAIN.apply)
UP = r"blocks/0/mixer/experts/up_proj/kernel"


def built(*rules):
    return models.build("nemotron_h", **SIZES, weights=list(rules))


def as_arrays(params):
    is_weight = lambda node: isinstance(node, Weight)  # noqa: E731
    return jax.tree.map(lambda node: matrix(node) if is_weight(node) else node, params, is_leaf=is_weight)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"shared"}))
def test_a_kind_over_experts_computes_with_the_matrices_that_it_stands_for(kind):
    model = built({"pattern": ".*/experts/.*", "kind": kind, **OPTIONS.get(kind, {})})
    params = jax.tree.map(lambda x: x + 0.1 if x.dtype == jnp.float32 else x, model.init(jax.random.key(0)))
    stack = params["blocks"][0]["mixer"]["experts"]["up_proj"]["kernel"]
    assert (type(stack), stack.shape) == (Stack, (3, 16, 8))
    PLAIN.check(as_arrays(params))
    found = jax.jit(model.apply)(params, TOKENS)
    np.testing.assert_allclose(found, plain_logits(as_arrays(params), TOKENS), atol=1e-5)
    if kind in ("lora", "gain"):
        np.testing.assert_allclose(plain_logits(as_arrays(merge(params)), TOKENS), found, atol=1e-5)


def test_experts_are_drawn_each_by_itself():
    params = built({"pattern": ".*/experts/.*", "kind": "map"}).init(jax.random.key(0))
    drawn = [np.asarray(x) for x in params["blocks"][0]["mixer"]["experts"]["up_proj"]["kernel"].materialize()]
    assert not any(np.array_equal(drawn[i], drawn[j]) for i in range(3) for j in range(i))
    assert count_seeded(params) == 2 * 3 * 16 * 8


def test_a_rule_names_an_expert_by_its_number():
    params = built({"pattern": ".*/experts/.*", "kind": "each"}).init(jax.random.key(0))
    mask = by_path(trainable_mask(params, [(r".*/experts/.*/1(/.*)?", True), (".*", False)]))
    assert [path for path, trains in mask.items() if trains] == [
        f"blocks/0/mixer/experts/{name}_proj/kernel/1" for name in ("down", "up")
    ]


def test_each_matrix_of_a_stack_has_its_own_gradient_and_what_is_frozen_has_none():
    """Law 5: where one expert trains, no program has the gradients of three."""
    model, plain = built({"pattern": UP, "kind": "each"}), built()
    params, whole = (m.init(jax.random.key(0)) for m in (model, plain))

    def gradient(of, params, *trained):
        mask = freezejax.trainable_mask(params, [*((path, True) for path in trained), (".*", False)])
        fn = freezejax.value_and_grad(lambda p: of.apply(p, TOKENS, targets_BxT=TOKENS).mean(), mask)
        sums = {e.outputs[0].shape for e in trace(fn, params).equations if e.primitive == "scan"}
        return by_path(jax.jit(fn)(params)[1]), {shape for shape in sums if shape[1:] == (16, 8)}

    wanted, sums = gradient(plain, whole, UP)
    assert sums == {(3, 16, 8)}
    assert gradient(model, params, "tok_emb/embedding")[1] == set()
    for trained, count in ((["1"], 1), (["2", "0"], 2)):
        found, sums = gradient(model, params, *(f"{UP}/{i}" for i in trained))
        assert found.keys() == {f"{UP}/{i}" for i in trained}
        assert sums == {(count, 16, 8)}
        for i in trained:
            np.testing.assert_allclose(found[f"{UP}/{i}"], wanted[UP][int(i)], atol=1e-6)


def test_a_trained_model_is_taken_apart_and_put_together():
    params = built().init(jax.random.key(0))
    apart = recast(params, [{"pattern": ".*/experts/.*", "kind": "each"}], jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, as_arrays(apart), params)


def test_a_file_holds_maps_and_adapters_of_experts_and_gives_the_same_bits(tmp_path):
    rules = [
        {"pattern": ".*/experts/up.*", "kind": "map"},
        {"pattern": ".*/experts/.*", "kind": "lora", "rank": 2},
    ]
    model, path = built(*rules), tmp_path / "model.fjax"
    params = model.init(jax.random.key(0))
    artifact.save(path, params, model={"family": "nemotron_h", **SIZES, "weights": rules}, codec="int8")
    apply, loaded, metadata = artifact.load(path)
    np.testing.assert_array_equal(apply(loaded, TOKENS), model.apply(artifact.quantize(params, "int8"), TOKENS))
    assert len(metadata["maps"]) == 3


def test_one_matrix_is_no_stack():
    with pytest.raises(UserError, match="there is one matrix here, and no stack to be taken apart"):
        built({"pattern": ".*/shared_experts/.*", "kind": "each"})


def test_eight_devices_compute_what_one_does(run_alone):
    """Where the batch alone is split every device sorts its own tokens, and gathers nothing."""
    found = run_alone(stack_program)
    for name, (alone, together, apart, _) in found.items():
        assert together == pytest.approx(alone, rel=1e-5), name
        assert apart < 1e-5, name
    assert found["plain, (8, 1, 1)"][3] == 0
    assert found["maps with LoRA, (8, 1, 1)"][3] > 0  # the counterpart: left to the partitioner
