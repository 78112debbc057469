"""A frozen prefix apart from the step: what belongs to it, and the same bits whether it is computed or kept."""

import itertools
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freezejax import FreezeSchedule, models
from freezejax.errors import UserError
from freezejax.masks import trainable_mask
from freezejax.sharding import make_mesh
from freezejax.training.batches import TokenBatches
from freezejax.training.config import TrainConfig
from freezejax.training.interrupts import Stopped, StopSignal
from freezejax.training.loop import train
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.plan import RunPlan
from freezejax.training.prefix_cache import batches as prefix_batches
from freezejax.training.prefix_cache import prefix
from freezejax.training.prefix_cache.batches import FOLDER, PrefixBatches
from freezejax.training.prefix_cache.store import _SEAL_BYTES as SEAL_BYTES
from freezejax.training.prefix_cache.store import ActivationCache
from freezejax.training.state import fingerprint

GEGLU = {"family": "geglu", "vocab_size": 61, "num_layers": 2, "model_dim": 16, "num_heads": 1}
GOLF = {**GEGLU, "family": "parameter_golf", "num_layers": 3, "num_heads": 2, "num_kv_heads": 1}
GATE_UP = r"blocks/\d+/mlp/(gate|up)/kernel"
MAPS = {**GEGLU, "weights": [{"pattern": GATE_UP, "kind": kind} for kind in ("map", "gain")]}
ALL = [(".*", True)]
PREFIX = [("tok_emb/.*|blocks/0/.*", False), *ALL]
FROM_START, LATER = [(0, PREFIX)], [(0, ALL), (3, PREFIX)]
FIELDS = {"steps": 10, "batch_size": 4, "seq_len": 16, "log_every": 1}
KINDS = ("recompute", "memory", "disk")


@pytest.fixture(scope="module")
def tokens():
    """11 windows: a batch of 4 now and then straddles two epochs; 10 steps are nearly four epochs."""
    return np.random.default_rng(0).integers(0, 61, 11 * 16 + 1).astype(np.uint16)


class Losses:
    """All losses of a run in several parts, each of which may be stopped after so many updates."""

    def __init__(self):
        self.found, self.stop, self.stop_at = [], StopSignal(), None

    def begin(self, step):
        self.stop.received = None
        assert step == len(self.found)

    def write(self, record):
        if "loss" not in record:
            return
        self.found.append(record["loss"])
        if record["step"] + 1 == self.stop_at:
            self.stop.received = signal.SIGTERM

    def close(self):
        pass


def go(tokens, directory, model=GEGLU, schedule=FROM_START, stop_at=None, losses=None, **fields):
    """`(losses, fingerprint of the parameters)`."""
    losses = losses or Losses()
    losses.stop_at = stop_at
    config = TrainConfig.from_mapping({**FIELDS, **fields})
    built, source = models.build(**model), TokenBatches(tokens, config)
    objective = LanguageModelling(built, config.compute_dtype)
    found = train(
        built, objective, source, config, FreezeSchedule(schedule), directory, sinks=[losses], stop=losses.stop
    )
    return losses.found, fingerprint(found.params)


@pytest.fixture
def seen(monkeypatch):
    """The `PrefixBatches` of the runs of a test."""
    made, init = [], PrefixBatches.__init__

    def noted(self, *args):
        made.append(self)
        init(self, *args)

    monkeypatch.setattr(PrefixBatches, "__init__", noted)
    return made


def mask_of(model, rules):
    shapes = jax.eval_shape(models.build(**model).init, jax.random.key(0))
    return shapes, trainable_mask(shapes, rules)


@pytest.mark.parametrize("model", [GEGLU, {**GOLF, "num_layers": 5}])
def test_the_rest_on_what_a_prefix_leaves_is_the_model(model):
    built = models.build(**model)
    params = jax.tree.map(
        lambda leaf: leaf + jnp.ones([], leaf.dtype) / 8 if leaf.dtype == jnp.float32 else leaf,
        built.init(jax.random.key(0)),
    )
    inputs = jnp.arange(24).reshape(2, 12)
    whole = built.apply(params, inputs)
    for blocks in range(model["num_layers"] + 1):
        hidden = built.prefix(params, inputs, blocks=blocks)
        assert (built.apply(params, inputs, blocks=blocks, hidden=hidden) == whole).all(), blocks
        assert all(leaf.shape == (2, 12, 16) for leaf in jax.tree.leaves(hidden))


@pytest.mark.parametrize(
    ("model", "rules", "blocks"),
    [
        (GEGLU, PREFIX, 1),
        (GEGLU, [("ln_f/.*", True), (".*", False)], 2),
        (GEGLU, [("tok_emb/.*", True), (".*", False)], 0),
        (GEGLU, [("blocks/0/ln2/.*", True), (".*", False)], 0),
        (MAPS, [("blocks/1/mlp/up/kernel/gain", True), (".*", False)], 1),
        (
            {**GEGLU, "weights": [{"pattern": "blocks/1/attn/out/kernel", "kind": "lora", "rank": 2}]},
            [(".*/(a|b)", True), (".*", False)],
            1,
        ),
        (GOLF, [("blocks/2/.*", True), (".*", False)], 2),
        (GOLF, [("skip_weights", True), (".*", False)], 1),
        ({**GOLF, "num_layers": 1}, [(".*", False)], 1),
    ],
)
def test_a_prefix_ends_at_the_first_leaf_that_trains_and_reads_none(model, rules, blocks, monkeypatch):
    shapes, mask = mask_of(model, rules)
    config = TrainConfig(**FIELDS, prefix_cache="recompute")
    built = models.build(**model)
    assert prefix.frozen_prefix(built, config, mask) == blocks
    assert prefix.frozen_prefix(built, TrainConfig(**FIELDS), mask) == 0
    frozen = jax.tree.map(lambda leaf, trains: None if trains else leaf, built.init(jax.random.key(0)), mask)
    inputs = jnp.arange(64).reshape(4, 16) % 61
    for more in (0, 1):
        if 0 < blocks + more <= model["num_layers"]:
            monkeypatch.setattr(prefix, "frozen_prefix", lambda *_, more=more: blocks + more)
            hidden = prefix.make_prefix(built, config, shapes, mask)(frozen, inputs)
            # Counterpart: one block more reads a leaf that trains, which is not there.
            assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(hidden)) == (more == 0)


CASES = {
    "dropout": {"model": {**GEGLU, "dropout": 0.3}},
    "u-net, bfloat16": {"model": GOLF, "compute_dtype": "bfloat16", "ema_decay": 0.5, "accumulation": 2},
    "maps, accumulation": {"model": MAPS, "schedule": [(0, PREFIX)], "accumulation": 2, "draw_maps": "once"},
    "nothing trains": {"schedule": [(0, [(".*", False)])]},
}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_weights_are_the_same_bits_computed_or_kept(case, tokens, tmp_path, seen):
    found = {kind: go(tokens, tmp_path / kind, prefix_cache=kind, **CASES[case]) for kind in KINDS}
    assert found["memory"] == found["recompute"] == found["disk"]
    assert [batches.reused > 0 for batches in seen] == [False, True, True]
    assert not (tmp_path / "disk" / FOLDER).exists()


def test_counterpart_dropout_in_the_prefix_is_seen(tokens, tmp_path):
    case = CASES["dropout"]
    kinds = ("off", "recompute")
    off, apart = (go(tokens, tmp_path / kind, prefix_cache=kind, **case)[0] for kind in kinds)
    assert off != apart


def test_counterpart_activations_of_another_window_are_seen(tokens, tmp_path, monkeypatch):
    right = go(tokens, tmp_path / "right", prefix_cache="memory")
    get = ActivationCache.get
    monkeypatch.setattr(ActivationCache, "get", lambda self, windows, tokens: get(self, windows[::-1], tokens))
    monkeypatch.setattr(PrefixBatches, "_check", lambda self, kept, inputs: True)
    assert go(tokens, tmp_path / "wrong", prefix_cache="memory") != right


@pytest.mark.parametrize(("windows", "kinds"), [(0, ["memory", "disk"]), (9.5, ["disk"])])
def test_what_does_not_fit_is_computed_every_time(windows, kinds, tokens, tmp_path, seen):
    gib = windows * 16 * 16 * 4 / 2**30
    whole = go(tokens, tmp_path / "whole", prefix_cache="recompute")
    for kind in kinds:
        assert go(tokens, tmp_path / kind, prefix_cache=kind, prefix_cache_gib=gib) == whole
        assert (seen[-1].reused > 0) == (windows > 0)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_bounded_cache_saves_runs_in_the_measure_of_what_it_keeps(kind, tmp_path):
    """288 of 320 windows fit: of 20 batches of 32 after the first epoch none is there whole, and few runs are left."""
    config = TrainConfig.from_mapping({**FIELDS, "prefix_cache": kind, "batch_size": 32})
    source = TokenBatches(np.random.default_rng(0).integers(0, 61, 320 * 16 + 1).astype(np.uint16), config)
    row = jax.ShapeDtypeStruct((16,), np.int32)
    size = 64 + (SEAL_BYTES if kind == "disk" else 0)
    cache = ActivationCache(row, 320, 288 * size, tmp_path / "cache" if kind == "disk" else None)
    assert cache.capacity == 288
    batches = PrefixBatches(source, lambda _, inputs: 2 * inputs, {}, cache)
    for _ in range(30):
        batch = next(batches)
        np.testing.assert_array_equal(batch["prefix"], 2 * batch["inputs"])
    assert batches.reused > 0.85 * 20 * 32
    assert batches.runs <= 10 + 20 // 5
    position = batches.get_state()
    assert position == {"next_index": 30}
    batches.close(remove=True)
    assert source.get_state() == position  # what was read ahead is read again


def test_without_a_prefix_the_option_changes_nothing(tokens, tmp_path, seen):
    embedding_trains = [(0, [("tok_emb/.*", True), *PREFIX])]
    kinds = ("off", "disk")
    off, disk = (go(tokens, tmp_path / kind, schedule=embedding_trains, prefix_cache=kind) for kind in kinds)
    assert off == disk
    assert not seen


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_killed_run_and_its_resume_give_the_same_bits(kind, tokens, tmp_path, seen):
    whole = go(tokens, tmp_path / "whole", schedule=LATER, prefix_cache="recompute")
    losses, parts = Losses(), tmp_path / "parts"
    for stop_at in (2, 8):
        with pytest.raises(Stopped):
            go(tokens, parts, schedule=LATER, stop_at=stop_at, losses=losses, prefix_cache=kind)
        assert not list((parts / "checkpoints" / str(stop_at)).rglob("activations"))
    assert (parts / FOLDER / "activations").exists() == (kind == "disk")
    assert go(tokens, parts, schedule=LATER, losses=losses, prefix_cache=kind) == whole
    assert not (parts / FOLDER).exists()
    assert (seen[-1].reused > 0) == (kind == "disk")


def flip(folder):
    whole = (folder / "activations").read_bytes()
    (folder / "activations").write_bytes(bytes(byte ^ (at % 7 == 0) for at, byte in enumerate(whole)))


DAMAGE = {
    "bits": flip,
    "cut short": lambda folder: (folder / "activations").write_bytes((folder / "activations").read_bytes()[:5000]),
    "holes": lambda folder: (folder / "activations").write_bytes(bytes((folder / "activations").stat().st_size)),
    "no label": lambda folder: (folder / "fingerprint").unlink(),
    "another label": lambda folder: (folder / "fingerprint").write_text("0" * 64),
}


@pytest.fixture(scope="module")
def stopped(tokens, tmp_path_factory):
    """What a whole run finds, and the folder and losses of one that stopped after its 7th update."""
    whole, losses = go(tokens, tmp_path_factory.mktemp("whole"), prefix_cache="recompute"), Losses()
    folder = tmp_path_factory.mktemp("parts")
    with pytest.raises(Stopped):
        go(tokens, folder, stop_at=7, losses=losses, prefix_cache="disk")
    return whole, folder, losses.found


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_file_is_computed_again(damage, tokens, stopped, tmp_path, seen):
    whole, folder, found = stopped
    shutil.copytree(folder, tmp_path / "parts")
    DAMAGE[damage](tmp_path / "parts" / FOLDER)
    losses = Losses()
    losses.found = list(found)
    assert go(tokens, tmp_path / "parts", losses=losses, prefix_cache="disk") == whole
    assert seen[-1].runs > 0


def test_what_activations_follow_from_is_in_the_fingerprint(monkeypatch):
    frozen = {"w": np.ones(3, np.float32)}
    known = prefix_batches.origin("program", frozen)
    assert prefix_batches.origin("program", {"w": np.ones(3, np.float32)}) == known
    assert prefix_batches.origin("another program", frozen) != known
    assert prefix_batches.origin("program", {"w": np.nextafter(frozen["w"], 2, dtype=np.float32)}) != known
    monkeypatch.setattr(prefix_batches, "versions", lambda *names: dict.fromkeys(names, "999"))
    assert prefix_batches.origin("program", frozen) != known


def test_the_program_tells_dtype_length_and_depth_apart():
    def text(rules=PREFIX, **fields):
        config = TrainConfig.from_mapping({**FIELDS, "prefix_cache": "disk", **fields})
        plan = RunPlan(models.build(**GEGLU), config, FreezeSchedule([(0, rules)]))
        return plan.lower_prefix(0).as_text()

    deeper = [("tok_emb/.*|blocks/.*", False), *ALL]
    texts = [text(), text(compute_dtype="bfloat16"), text(seq_len=15), text(rules=deeper), text(accumulation=2)]
    assert len(set(texts)) == 5
    assert text() == texts[0]


def test_a_device_whose_bits_depend_on_the_company_does_without_the_cache(tokens):
    config = TrainConfig(**FIELDS, prefix_cache="memory")
    place = np.arange(4, dtype=np.int32)[:, None]
    for strange in (False, True):
        row = jax.ShapeDtypeStruct((16,), np.int32)
        source, cache = TokenBatches(tokens, config), ActivationCache(row, 11, 2**20)
        batches = PrefixBatches(source, lambda _, x, s=strange: x + place * s, {}, cache)
        for batch in itertools.islice(iter(batches.__next__, None), 12):
            np.testing.assert_array_equal(batch["prefix"], batch["inputs"] + place * strange)
        assert (batches.reused > 0) != strange


def test_on_a_mesh_it_is_refused_in_one_line():
    config = TrainConfig(**FIELDS, prefix_cache="memory")
    mesh = make_mesh()
    with pytest.raises(UserError, match=r"train.prefix_cache='memory' is for one device, and this run has 1"):
        RunPlan(models.build(**GEGLU), config, FreezeSchedule(FROM_START), mesh)


@pytest.mark.parametrize(("field", "value"), [("prefix_cache", "ram"), ("prefix_cache_gib", -1.0)])
def test_a_bad_field_is_named(field, value):
    with pytest.raises(UserError, match=f"train.{field}="):
        TrainConfig.from_mapping({**FIELDS, field: value})
