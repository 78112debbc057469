"""A family in one file and one line of the table: learned positions, biases, an untied head, names of its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from freezejax import FreezeSchedule, models
from freezejax.errors import UserError
from freezejax.masks import trainable_mask
from freezejax.models import attention, importers, layers
from freezejax.models.family import Family
from freezejax.paths import map_with_paths, named_key
from freezejax.training.batches import TokenBatches
from freezejax.training.config import OptimizerConfig, TrainConfig
from freezejax.training.loop import train
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.prefix_cache import prefix


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    vocab_size: int = 13
    num_layers: int = 3
    model_dim: int = 8
    length: int = 16


class ToyBlock(nnx.Module):
    def __init__(self, dim):
        self.norm = layers.RMSNorm(dim, 1e-6)
        self.qkv = layers.Linear(dim, 3 * dim, bias=True)
        self.out = layers.Linear(dim, dim, bias=True)

    def __call__(self, x):
        q, k, v = jnp.split(self.qkv(self.norm(x))[:, :, None], 3, axis=-1)
        return x + self.out(attention.causal_attention(q, k, v)[:, :, 0])


class Toy(nnx.Module):
    def __init__(self, config):
        self.wte = layers.Embedding(config.vocab_size, config.model_dim)
        self.wpe = layers.Positions(config.length, config.model_dim)
        self.h = nnx.List([ToyBlock(config.model_dim) for _ in range(config.num_layers)])
        self.lm_head = layers.Linear(config.model_dim, config.vocab_size)

    def embed(self, tokens_BxT, dtype):
        return {"x": self.wte(tokens_BxT, dtype) + self.wpe(tokens_BxT.shape[1], dtype)}

    def block(self, i, stream, state, dropout_key):
        return {"x": self.h[i](stream["x"])}, state

    def head(self, stream, targets_BxT):
        return layers.head(self.lm_head, stream["x"], targets_BxT)


TOY = Family(
    config=ToyConfig,
    module=Toy,
    init_rules=lambda config: [(".*/scale", nnx.initializers.ones), (".*", nnx.initializers.normal(0.3))],
    names=[
        (r"h/(\d+)/qkv/kernel", r"transformer/h/\1/c_attn/weight", False),  # as GPT-2 has it
        (r"h/(\d+)/qkv/bias", r"transformer/h/\1/c_attn/bias", False),
        (r"h/(\d+)/out/kernel", r"transformer/h/\1/c_proj/weight", True),
        (r"h/(\d+)/out/bias", r"transformer/h/\1/c_proj/bias", False),
        (r"h/(\d+)/norm/scale", r"transformer/h/\1/ln/weight", False),
        (r"(wte|wpe)/embedding", r"transformer/\1/weight", False),
        (r"lm_head/kernel", r"lm_head/weight", True),
    ],
    sharding=[(".*/qkv/kernel", P("fsdp", "tensor")), ("w.e/embedding", P("fsdp", None))],
    fixed={"tied": False},
)
TOKENS = np.random.default_rng(0).integers(0, 13, (2, 10), dtype=np.int32)
FIELDS = {"steps": 12, "batch_size": 4, "seq_len": 8, "log_every": 1, "optimizer": OptimizerConfig(learning_rate=0.03)}
PREFIX = [("w.e/.*|h/[01]/.*", False), (".*", True)]


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """The one line of the table."""
    monkeypatch.setitem(models.FAMILIES, "toy", TOY)


def make(**config):
    model = models.build("toy", **config)
    moved = lambda path, leaf: leaf + 0.3 * jax.random.normal(named_key(jax.random.key(1), path), leaf.shape)  # noqa: E731
    return model, map_with_paths(moved, model.init(jax.random.key(0)))


def mask_of(model, *rules):
    return trainable_mask(model.abstract_params(), [*rules, (".*", False)])


def equations(params, tokens_T):
    """The logits in numpy, sharing nothing with the package."""
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = wide["wte"]["embedding"][tokens_T] + wide["wpe"]["embedding"][: len(tokens_T)]
    for block in wide["h"].values():
        normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * block["norm"]["scale"]
        q, k, v = np.split(normed @ block["qkv"]["kernel"] + block["qkv"]["bias"], 3, axis=1)
        scores = np.where(np.tri(len(x), dtype=bool), q @ k.T / np.sqrt(x.shape[1]), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        x = x + weights / weights.sum(-1, keepdims=True) @ v @ block["out"]["kernel"] + block["out"]["bias"]
    return x @ wide["lm_head"]["kernel"]


def test_logits_are_those_of_the_equations_and_every_leaf_matters():
    model, params = make()
    wanted = equations(params, TOKENS[0])
    np.testing.assert_allclose(model.apply(params, TOKENS)[0], wanted, atol=3e-5)
    for path in ("wpe/embedding", "h/1/qkv/bias", "h/2/out/bias", "lm_head/kernel"):
        moved = map_with_paths(lambda name, leaf, path=path: jnp.cos(leaf) if name == path else leaf, params)
        assert np.abs(equations(moved, TOKENS[0]) - wanted).max() > 1e-2


@pytest.mark.parametrize(
    ("trains", "blocks"),
    [
        ("lm_head/.*", 3),
        ("h/2/out/bias", 2),
        ("h/1/norm/scale", 1),
        ("h/0/qkv/bias", 0),
        ("wte/embedding", 0),
        ("wpe/embedding", 0),  # the position table: no leaf name is known to what decides
    ],
)
def test_a_prefix_reads_nothing_that_trains(trains, blocks, monkeypatch):
    """What the frozen half lacks is NaN: a prefix of one block more, where there is one, would read it."""
    model, params = make()
    mask = mask_of(model, (trains, True))
    assert model.frozen_blocks(mask) == blocks
    frozen = jax.tree.map(lambda leaf, m: None if m else leaf, params, mask)
    config = TrainConfig(**FIELDS, prefix_cache="recompute")
    for tried in {blocks, min(blocks + 1, model.config.num_layers)} - {0}:
        monkeypatch.setattr(prefix, "frozen_prefix", lambda *_, tried=tried: tried)
        hidden = prefix.make_prefix(model, config, model.abstract_params(), mask)(frozen, TOKENS).hidden
        assert bool(jnp.isfinite(hidden["x"]).all()) == (tried == blocks)


@pytest.fixture
def promotion_as_a_user_has_it():
    """optax's Adam adds a float to an int32 count, on every thread that compiles."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.mark.usefixtures("promotion_as_a_user_has_it")
def test_it_trains_and_a_frozen_prefix_apart_gives_the_same_bits(tmp_path):
    model, _ = make()
    text = np.arange(400, dtype=np.uint16) % 13
    losses = {}

    class Losses(list):
        begin = close = lambda self, *_: None

        def write(self, record):
            self += [record["loss"]] if "loss" in record else []

    for kind in ("off", "recompute", "memory"):
        config = TrainConfig(**FIELDS, prefix_cache=kind, remat=kind == "off")
        losses[kind] = Losses()
        objective, batches = LanguageModelling(model, remat=config.remat), TokenBatches(text, config)
        schedule = FreezeSchedule([(0, PREFIX)])
        train(model, objective, batches, config, schedule, tmp_path / kind, sinks=[losses[kind]])
    assert losses["recompute"] == losses["memory"]
    np.testing.assert_allclose(losses["off"], losses["memory"], rtol=1e-5)
    assert losses["off"][-1] < losses["off"][0]


def test_torch_names_both_ways():
    model, params = make()
    state = importers.state_to_torch(model, params)
    assert state["transformer.h.1.c_attn.weight"].shape == (8, 24)
    assert state["transformer.h.1.c_proj.weight"].shape == state["transformer.h.1.c_proj.weight"].T.shape == (8, 8)
    np.testing.assert_array_equal(state["transformer.h.1.c_proj.weight"].T, params["h"][1]["out"]["kernel"])
    assert state["lm_head.weight"].shape == (13, 8)
    assert state["transformer.wpe.weight"].shape == (16, 8)
    apply, loaded = models.from_torch("toy", state, {**vars(model.config), "tied": False})
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    np.testing.assert_array_equal(apply(loaded, TOKENS), model.apply(params, TOKENS))


def test_its_record_says_how_it_lies_on_a_mesh():
    assert models.build("toy").family.sharding[0] == (".*/qkv/kernel", P("fsdp", "tensor"))


def _names(*lines):
    return dataclasses.replace(TOY, names=lines)


REFUSED = {
    "a sequence beyond the positions": (
        lambda: models.build("toy").apply(make()[1], jnp.zeros((1, 17), jnp.int32)),
        "a sequence of 17 tokens: this model has positions for 16",
    ),
    "an unknown key": (lambda: models.build("toy", heads=2), "ToyConfig has no field 'heads'"),
    "a fixed key": (
        lambda: models.from_torch("toy", {}, {"tied": True}),
        "config tied=True: this family supports False",
    ),
    "a leaf without a distribution": (
        lambda: models.base.functional(
            dataclasses.replace(TOY, init_rules=lambda _: [(".*/scale", None)]), ToyConfig()
        ),
        "no initial distribution for leaf 'h/0/out/bias'",
    ),
    "a leaf without a name": (
        lambda: importers.torch_names(models.base.functional(_names(), ToyConfig()), make()[1]),
        "leaf 'h/0/norm/scale' has no name in torch: no pattern of the family's name table matches it",
    ),
    "one name for two leaves": (
        lambda: importers.torch_names(models.base.functional(_names((".*", "w", False)), ToyConfig()), make()[1]),
        "calls leaves 'h/0/norm/scale' and 'h/0/out/bias' both 'w'",
    ),
    "a tap that is not there": (
        lambda: models.build("toy").apply(make()[1], TOKENS, taps=[3]),
        "taps: there is no block 3 here; blocks 0 to 2 are run",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(case):
    action, message = REFUSED[case]
    with pytest.raises(UserError) as error:
        action()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
