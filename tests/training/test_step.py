"""Laws 1 and 2 through the real step and the real loop: what is frozen stands still and is not seen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from freezejax import FreezeSchedule, combine, freeze, partition, scheduled_freeze, trainable_mask
from freezejax.data import train_iterator
from freezejax.paths import leaf_paths, named_key
from freezejax.training.config import TrainConfig
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.optimizers import lr_schedule, make_optimizer
from freezejax.training.step import StepState, averaged, make_step

CONFIG = TrainConfig(steps=12, batch_size=4, seq_len=16)
FROZEN = [(r"blocks/\d+/mlp/(gate|up)/kernel", False), (".*", True)]


@pytest.fixture(scope="module")
def batches(tokens):
    stream = train_iterator(tokens, batch_size=4, seq_len=16, seed=0)
    return [jax.tree.map(jnp.asarray, next(stream)) for _ in range(CONFIG.steps)]


@pytest.fixture(scope="module")
def model(build):
    return build()


@pytest.fixture(scope="module")
def params(model):
    return model.init(jax.random.key(0))


def snapshots_of(run, directory, entries, **fields):
    seen = []

    def keep(params):
        seen.append(dict(zip(leaf_paths(params), map(np.array, jax.tree.leaves(params)), strict=True)))
        return {"val_ce": 0.0}

    _, recorder = run(directory, entries, evaluate=keep, eval_every=1, **fields)
    return seen, recorder


@pytest.mark.parametrize("fields", [{"ema_decay": 0.7, "accumulation": 2}, {"optimizer": {"name": "muon"}}], ids=str)
def test_the_loop_leaves_frozen_leaves_bitwise_and_moves_the_others(run, entries, fields, tmp_path):
    seen, _ = snapshots_of(run, tmp_path, entries["thaw"], **fields)
    gate, qkv, embedding = "blocks/0/mlp/gate/kernel", "blocks/0/attn/qkv/kernel", "tok_emb/embedding"

    def moved(path, since, until):  # between the states after `since` and `until` updates
        return seen[since - 1][path].tobytes() != seen[until - 1][path].tobytes()

    has_average = "ema_decay" in fields  # while frozen, a leaf is its own average
    assert moved(gate, 1, 4)
    assert not any(moved(gate, 5 if has_average else 4, step) for step in (5, 6, 7))
    assert all(moved(gate, step, step + 1) for step in (7, 8, 9, 10, 11))
    assert not any(moved(qkv, 10 if has_average else 9, step) for step in (10, 11, 12))
    assert all(moved(embedding, step, step + 1) for step in range(1, 12))


# The tied embedding has most of the gradient.
FROZEN_EMBEDDING = [("tok_emb/.*", False), (".*", True)]


def by_hand(model, params, batches, *, tx_of_half, whole_gradient_clip=None):
    """The trainable half alone is the whole tree; the frozen leaves are constants of the loss."""
    loss, mask = mean_loss(model), trainable_mask(params, FROZEN_EMBEDDING)
    half, frozen = partition(params, mask)
    state, norms = tx_of_half.init(half), []

    @jax.jit
    def gradient(half, batch):
        return jax.grad(lambda half: loss(combine(half, frozen), batch, jax.random.key(0)))(half)

    @jax.jit
    def whole_gradient(half, batch):
        return jax.grad(loss)(combine(half, frozen), batch, jax.random.key(0))

    for batch in batches:
        grads = gradient(half, batch)
        norms.append(float(optax.tree.norm(grads)))
        if whole_gradient_clip:
            clip = optax.clip_by_global_norm(whole_gradient_clip)
            grads = partition(clip.update(whole_gradient(half, batch), clip.init(params))[0], mask)[0]
        updates, state = tx_of_half.update(grads, state, half)
        half = optax.apply_updates(half, updates)
    return combine(half, frozen), norms


def mean_loss(model):
    objective = LanguageModelling(model)
    return lambda params, batch, key: objective.loss(params, batch, key)[0]


def difference(one, other):
    return max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_trainable_leaves_move_as_if_the_frozen_ones_were_constants(run, model, params, batches, tmp_path):
    """A clip that always bites: had it seen the frozen gradients, every weight would move otherwise."""
    clipped = {"clip": 0.001, "eps": 1e-3}
    found, recorder = run(tmp_path, [(0, FROZEN_EMBEDDING)], optimizer=clipped)
    config = TrainConfig.from_mapping({"steps": 12, "batch_size": 4, "seq_len": 16, "optimizer": clipped})
    tx = make_optimizer(config.optimizer, lr_schedule(config.optimizer, 12))
    expected, norms = by_hand(model, params, batches, tx_of_half=tx)
    assert min(norms) > 0.001
    np.testing.assert_allclose([r["grad_norm"] for r in recorder.records if "loss" in r], norms, rtol=1e-4)
    assert difference(found.params, expected) < 1e-5
    counterpart, _ = by_hand(model, params, batches, tx_of_half=tx, whole_gradient_clip=0.001)
    assert difference(counterpart, expected) > 1e-4


@pytest.mark.parametrize("on_thaw", ["restart", "keep"])
def test_static_phases_of_the_loop_are_the_traced_mask_by_hand(run, entries, model, params, batches, on_thaw, tmp_path):
    """Law 3."""
    found, recorder = run(tmp_path, entries["thaw"], on_thaw=on_thaw, optimizer={"eps": 1e-3})
    config = TrainConfig.from_mapping({"steps": 12, "batch_size": 4, "seq_len": 16, "optimizer": {"eps": 1e-3}})
    inner = make_optimizer(config.optimizer, lr_schedule(config.optimizer, 12))
    tx = scheduled_freeze(inner, FreezeSchedule(entries["thaw"]), on_thaw=on_thaw)
    loss = mean_loss(model)

    @jax.jit
    def step(params, state, batch):
        value, grads = jax.value_and_grad(loss)(params, batch, jax.random.key(0))
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = tx.init(params), []
    for batch in batches:
        params, state, value = step(params, state, batch)
        losses.append(float(value))
    np.testing.assert_allclose(recorder.losses(), losses, rtol=1e-5)
    assert difference(found.params, params) < 1e-5


def test_counterpart_the_other_on_thaw_is_another_trajectory(run, entries, tmp_path):
    found = [run(tmp_path / word, entries["thaw"], on_thaw=word)[0].params for word in ("restart", "keep")]
    assert difference(*found) > 1e-4


def whole_run(model, params, batches, rules, accumulation=1, ema_decay=0.0):
    mask = trainable_mask(params, rules)
    tx = freeze(optax.adamw(1e-2, eps=1e-3), mask)
    step = jax.jit(make_step(LanguageModelling(model), tx, accumulation=accumulation, ema_decay=ema_decay))
    half, frozen = partition(params, mask)
    state = StepState(half, tx.init(half), half if ema_decay else None)
    seen = []
    for index, batch in enumerate(batches):
        state, metrics = step(state, frozen, jax.random.key(0), index, batch)
        seen.append((state, jax.tree.map(float, metrics)))
    return seen


def test_four_microbatches_are_one_batch(model, params, batches):
    one, four = (whole_run(model, params, batches[:5], FROZEN, parts) for parts in (1, 4))
    for (state, metrics), (other, others) in zip(one, four, strict=True):
        assert difference(state.trainable, other.trainable) < 1e-5
        assert metrics == pytest.approx(others, rel=1e-4)


def test_microbatches_have_different_dropout_masks(build, params, batches):
    """The four rows of this batch are one row, so that only the masks differ."""
    model = build(dropout=0.5)
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), batches[0])
    row = jax.tree.map(lambda x: x[:1], same)
    key_of_step = jax.random.fold_in(named_key(jax.random.key(0), "dropout"), 0)
    loss = jax.jit(mean_loss(model))
    losses = [float(loss(params, row, jax.random.fold_in(key_of_step, part))) for part in range(4)]
    assert len(set(losses)) == 4
    ((_, metrics),) = whole_run(model, params, [same], FROZEN, accumulation=4)
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert metrics["loss"] != pytest.approx(losses[0], rel=1e-6)


def test_the_ema_is_the_average_by_hand_of_trainable_leaves_only(model, params, batches):
    seen = whole_run(model, params, batches[:6], FROZEN, ema_decay=0.8)
    mean = partition(params, trainable_mask(params, FROZEN))[0]
    for count, (state, _) in enumerate(seen):
        decay = min(0.8, count / (count + 9))
        mean = jax.tree.map(lambda m, w, d=decay: d * m + (1 - d) * w, mean, state.trainable)
        assert difference(state.ema, mean) < 1e-6
        assert not [path for path in leaf_paths(state.ema) if "gate" in path or "up" in path]
    assert difference(seen[-1][0].ema, seen[-1][0].trainable) > 1e-3


def test_an_average_begins_with_the_first_update_and_follows_what_grows():
    """As an adapter does that starts at zero under a rate that warms up. Counterpart: a constant decay lags behind."""
    mean = constant = jnp.zeros(())
    for count in range(200):
        weight = jnp.float32((count + 1) / 200)
        mean = averaged(mean, weight, jnp.int32(count), 0.99)
        constant = 0.99 * constant + 0.01 * weight
        assert count or float(mean) == float(weight)
    assert float(mean) > 0.89
    assert float(constant) < 0.6


def test_an_average_counts_from_the_thaw_of_its_leaf(run, entries, tmp_path):
    """Gate thaws for the update after step 7: its average is then its weight, that of the others goes on."""
    weights, averages = (
        snapshots_of(run, tmp_path / str(decay), entries["thaw"], ema_decay=decay)[0] for decay in (0.0, 0.9)
    )
    gate, norm = "blocks/0/mlp/gate/kernel", "blocks/0/ln1/scale"
    equal = lambda path: [np.array_equal(weights[step][path], averages[step][path]) for step in (0, 1, 7, 8)]  # noqa: E731
    assert equal(gate) == [True, False, True, False]
    assert equal(norm) == [True, False, False, False]


def test_metrics_are_the_loss_and_the_norm_before_the_update(model, params, batches):
    ((_, metrics),) = whole_run(model, params, batches[:1], FROZEN)
    loss = mean_loss(model)
    value, grads = jax.value_and_grad(loss)(params, batches[0], jax.random.key(0))
    trainable, frozen = partition(grads, trainable_mask(params, FROZEN))
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(trainable)), rel=1e-5)
    assert float(optax.tree.norm(frozen)) > 0.01 * metrics["grad_norm"]
