"""Optimizers and learning rates by name: closed forms, and which leaves muon takes."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from freezejax import FreezeSchedule, freeze, models
from freezejax.errors import UserError
from freezejax.paths import leaf_paths
from freezejax.training.config import OptimizerConfig, TrainConfig
from freezejax.training.optimizers import lr_schedule, lr_schedule_of_run, make_optimizer

SHAPES = {
    ("cosine", 0): lambda step: 0.5 * (1 + math.cos(math.pi * step / 20)),
    ("cosine", 4): lambda step: (step + 1) / 5 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / 16)),
    ("linear_warmdown", 0): lambda step: min(1.0, (20 - step) / 5),
    ("linear_warmdown", 4): lambda step: min((step + 1) / 5, 1.0, (20 - step) / 5),
    ("constant", 4): lambda step: min((step + 1) / 5, 1.0),
}


@pytest.mark.parametrize(("schedule", "warmup"), SHAPES)
def test_lr_schedules_are_the_closed_forms(schedule, warmup):
    config = OptimizerConfig(schedule=schedule, warmup_steps=warmup, warmdown_steps=5)
    shape = lr_schedule(config, 20)
    expected = [SHAPES[schedule, warmup](step) for step in range(20)]
    np.testing.assert_allclose([float(shape(step)) for step in range(20)], expected, atol=1e-6)
    traced = jax.jit(jax.vmap(shape))(jnp.arange(20))
    np.testing.assert_allclose(traced, expected, atol=1e-6)


@pytest.mark.parametrize("fields", [{"warmup_steps": 99}, {"schedule": "linear_warmdown", "warmdown_steps": 99}])
def test_a_run_shorter_than_its_warmup_has_a_finite_positive_rate(fields):
    shape = lr_schedule(OptimizerConfig(**fields), 3)
    rates = [float(shape(step)) for step in range(3)]
    assert all(0 < rate <= 1 for rate in rates)


def config_of(**fields):
    return TrainConfig.from_mapping({"steps": 12, "batch_size": 4, "seq_len": 16, **fields})


def test_a_restarted_schedule_is_a_whole_schedule_per_phase():
    config = config_of(restart_schedule=True, optimizer={"warmup_steps": 1})
    phases = FreezeSchedule([(0, [("w", True)]), (4, [("w", False)]), (7, [("w", True)])]).phases({"w": 0.0}, 12)
    rate = lr_schedule_of_run(config, phases)
    expected = [float(lr_schedule(config.optimizer, length)(step)) for length in (4, 3, 5) for step in range(length)]
    assert [float(rate(step)) for step in range(12)] == pytest.approx(expected)
    plain = lr_schedule_of_run(config_of(optimizer={"warmup_steps": 1}), phases)
    assert [float(plain(step)) for step in range(12)] != pytest.approx(expected)


@pytest.mark.parametrize("restart_schedule", [True, False])
def test_the_rate_follows_the_run_when_the_optimizer_restarts(restart_schedule, run, entries, tmp_path):
    """With plain sign-like updates (Adam, no decay) the size of a step shows the rate that was used."""
    seen = []
    fields = {
        "restart_optimizer": True,
        "restart_schedule": restart_schedule,
        "optimizer": {"schedule": "linear_warmdown", "warmdown_steps": 12, "weight_decay": 0.0, "b1": 0.0, "b2": 0.0},
    }
    keep = lambda params: seen.append(np.array(params["tok_emb"]["embedding"])) or {"val_ce": 0.0}  # noqa: E731
    _, recorder = run(tmp_path, entries["later"], evaluate=keep, eval_every=1, **fields)
    logged = [record["learning_rate"] for record in recorder.records if "loss" in record]
    used = [float(np.abs(after - before).max()) for before, after in itertools.pairwise(seen)]
    np.testing.assert_allclose(used, logged[1:12], rtol=1e-2)
    in_second_phase = 1.0 if restart_schedule else 8 / 12
    assert logged[4] == pytest.approx(1e-3 * in_second_phase, rel=1e-5)


MUON = {
    "geglu": ("attn/qkv", "attn/out", "mlp/gate", "mlp/up", "mlp/down"),
    "parameter_golf": ("attn/c_q", "attn/c_k", "attn/c_v", "attn/proj", "mlp/fc", "mlp/proj"),
}
ADAMW = {"geglu": {"ln_f/scale"}, "parameter_golf": {"skip_weights"}}


@pytest.mark.parametrize("family", MUON)
def test_muon_takes_the_kernels_of_the_blocks_only(family):
    sizes = {"geglu": {}, "parameter_golf": {"num_kv_heads": 1}}[family]
    model = models.build(family, vocab_size=61, num_layers=2, model_dim=32, num_heads=2, **sizes)
    params = jax.eval_shape(model.init, jax.random.key(0))
    tx = make_optimizer(OptimizerConfig(name="muon"), lambda count: jnp.ones([]))
    _, state = jax.eval_shape(tx.init, params)
    muon, adam = (set(leaf_paths(state.inner_states[name].inner_state[0].mu)) for name in ("muon", "adam"))
    assert muon == {f"blocks/{layer}/{leaf}/kernel" for layer in (0, 1) for leaf in MUON[family]}
    assert adam == set(leaf_paths(params)) - muon
    assert adam > {"tok_emb/embedding", *ADAMW[family]}
    vectors_of_blocks = {path for path in adam if path.startswith("blocks/")}
    assert vectors_of_blocks
    if family == "parameter_golf":
        assert params["blocks"][0]["resid_mix"].shape == (2, 32)
        assert "blocks/0/resid_mix" in vectors_of_blocks


def test_muon_updates_are_near_orthogonal_and_adamw_takes_its_own_rate():
    params = {"blocks": {0: {"kernel": jnp.ones((8, 8))}}, "b": jnp.ones(3)}
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape), params)
    config = OptimizerConfig(name="muon", learning_rate=0.5, adam_learning_rate=0.25, weight_decay=0.0, clip=0.0)
    tx = freeze(make_optimizer(config, lambda count: jnp.ones([])), {"blocks": {0: {"kernel": True}}, "b": True})
    updates, _ = tx.update(grads, tx.init(params), params)
    singular = jnp.linalg.svd(updates["blocks"][0]["kernel"], compute_uv=False)
    assert float(singular.max()) < 1.5 * 0.5
    assert float(singular.min()) > 0.3 * 0.5
    adam = optax.adam(0.25, 0.9, 0.999, 1e-8, nesterov=True)  # optax.contrib.muon makes both Nesterov
    expected, _ = adam.update({"b": grads["b"]}, adam.init({"b": params["b"]}))
    np.testing.assert_allclose(updates["b"], expected["b"], rtol=1e-5)


def test_adamw_is_optax_adamw_after_the_clip():
    params, grads = {"w": jnp.arange(1.0, 4.0)}, {"w": jnp.array([3.0, 0.0, 4.0])}
    config = OptimizerConfig(clip=1.0, learning_rate=0.1, weight_decay=0.2)
    tx = make_optimizer(config, lambda count: jnp.ones([]))
    reference = optax.adamw(0.1, 0.9, 0.999, 1e-8, weight_decay=0.2)
    updates, _ = tx.update(grads, tx.init(params), params)
    expected, _ = reference.update({"w": grads["w"] / 5}, reference.init(params), params)
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": 0}, "train.steps=0"),
        ({"steps": "5"}, "train.steps='5': expected int"),
        ({"steps": True}, "train.steps=True"),
        ({"seq_len": 1.5}, "train.seq_len=1.5"),
        ({"accumulation": 3}, "train.accumulation=3"),
        ({"ema_decay": 1.0}, "train.ema_decay"),
        ({"on_thaw": "keeep"}, "nearest: keep"),
        ({"compute_dtype": "float16"}, "float32"),
        ({"sed": 1}, "nearest: seed"),
        ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate=nan"),
        ({"optimizer": {"learning_rate": "1e-3"}}, "train.optimizer.learning_rate"),
        ({"optimizer": {"name": "adam"}}, "nearest: adamw"),
        ({"optimizer": {"b1": 1}}, "optimizer.b1"),
        ({"optimizer": {"momentun": 0.9}}, "nearest: momentum"),
    ],
)
def test_a_bad_field_is_named_in_one_line(values, words):
    with pytest.raises(UserError) as raised:
        config_of(**values)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_field_is_named():
    with pytest.raises(UserError, match=r"train\.seq_len is missing"):
        TrainConfig.from_mapping({"steps": 1, "batch_size": 2})
