"""`describe` against numbers worked out by hand and against the optimizer state itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import freezejax
from freezejax import FreezeSchedule, UserError, describe

PARAMS = {
    "blocks": [{"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)} for _ in range(2)],
    "head": jnp.zeros((3, 5), jnp.bfloat16),
}
MASK = {"blocks": [{"w": False, "b": True}, {"w": True, "b": True}], "head": False}


def rows_of(description):
    return [{row.group: row for row in rows} for _, rows in description.phases]


def test_by_hand():
    (rows,) = rows_of(describe(PARAMS, MASK))
    w, b, head, total = rows["blocks/*/w"], rows["blocks/*/b"], rows["head"], rows["total"]
    assert (w.leaves, w.parameters, w.trainable_parameters, w.trainable_share) == (2, 12, 6, 0.5)
    assert (w.weight_bytes, w.gradient_bytes, w.state_bytes) == (48, 24, 48)
    assert (b.weight_bytes, b.gradient_bytes, b.state_bytes) == (24, 24, 48)
    assert (head.parameters, head.weight_bytes, head.gradient_bytes, head.state_bytes) == (15, 30, 0, 0)
    assert (total.leaves, total.parameters, total.trainable_parameters) == (5, 33, 12)
    assert (total.weight_bytes, total.gradient_bytes, total.state_bytes) == (102, 48, 96)


def test_the_table_of_a_schedule():
    schedule = FreezeSchedule([(0, [(".*", True)]), (0.5, [("head", False), (".*", True)])])
    assert str(describe(PARAMS, schedule, total_steps=10)) == (
        "steps 0 to 5\n"
        "group       leaves  parameters  trainable  weights  gradients  state\n"
        "blocks/*/b       2           6       100%     24 B       24 B   48 B\n"
        "blocks/*/w       2          12       100%     48 B       48 B   96 B\n"
        "head             1          15       100%     30 B       30 B   60 B\n"
        "total            5          33       100%    102 B      102 B  204 B\n"
        "\n"
        "steps 5 to 10\n"
        "group       leaves  parameters  trainable  weights  gradients  state\n"
        "blocks/*/b       2           6       100%     24 B       24 B   48 B\n"
        "blocks/*/w       2          12       100%     48 B       48 B   96 B\n"
        "head             1          15         0%     30 B        0 B    0 B\n"
        "total            5          33        55%    102 B       72 B  144 B\n"
        "rule 'head' freezes head\n"
        "rule '.*' trains the rest: 4 leaves"
    )


def test_state_bytes_are_those_of_the_state_itself(optimizer):
    tx = optimizer.make()
    (rows,) = rows_of(describe(PARAMS, MASK, tx=tx))
    state = jax.eval_shape(freezejax.freeze(tx, MASK).init, PARAMS)
    none = jax.eval_shape(freezejax.freeze(tx, jax.tree.map(lambda _: False, MASK)).init, PARAMS)
    counted = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    counters = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(none))
    assert rows["total"].state_bytes == counted - counters


def test_abstract_parameters_and_a_bare_array():
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, PARAMS))
    assert str(describe(shapes, MASK)) == str(describe(PARAMS, MASK))
    assert rows_of(describe(np.zeros(3, np.float32), True, tx=optax.sgd(0.1)))[0]["total"].state_bytes == 0


def test_numbered_modules_of_linen_share_a_row_and_layers_of_one_leaf_do_not():
    block = {"Dense_0": {"kernel": np.zeros((2, 3), np.float32)}, "norm": {"scale": np.zeros(3, np.float32)}}
    params = {"params": {"block_0": block, "block_1": block, "Dense_0": block["Dense_0"], "Dense_1": block["Dense_0"]}}
    (rows,) = rows_of(describe(params, jax.tree.map(lambda _: True, params)))
    blocks = {"params/block_*/Dense_0/kernel": 2, "params/block_*/norm/scale": 2}
    apart = {"params/Dense_0/kernel": 1, "params/Dense_1/kernel": 1}
    assert {name: row.leaves for name, row in rows.items()} == blocks | apart | {"total": 6}


ERRORS = {
    "no length": (lambda: describe(PARAMS, FreezeSchedule([(0, [(".*", True)])])), "needs total_steps"),
    "misfit": (lambda: describe(PARAMS, MASK | {"haed": True}), "'haed' is not in the tree; nearest: head"),
    "too short": (lambda: describe(PARAMS, {"head": True}), "mask has no leaf 'blocks/0/b'"),
    "unmatched rule": (
        lambda: describe(PARAMS, FreezeSchedule([(0, [("hed", True), (".*", True)])]), total_steps=3),
        "rule 'hed' matches no leaf; nearest: head",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_culprit(name):
    call, message = ERRORS[name]
    with pytest.raises(UserError, match=message):
        call()
