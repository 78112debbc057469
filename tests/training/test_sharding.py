"""The rule table: what of a model lies how, and what of its state lies like it."""

from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from freezejax import FreezeSchedule, models, sharding
from freezejax.errors import UserError
from freezejax.paths import leaf_paths
from freezejax.sharding import Layout, make_mesh, spec_of, used_spec
from freezejax.training.config import TrainConfig
from freezejax.training.plan import RunPlan
from freezejax.weights import draw_maps

COLUMNS, ROWS = P("fsdp", "tensor"), P("tensor", "fsdp")
# Of both families: their tables do not contradict each other.
RULES = [rule for family in models.FAMILIES.values() for rule in family.sharding]
PATHS = ["blocks/0/attn/qkv/kernel", "blocks/11/mlp/down/kernel", "tok_emb/embedding", "ln_f/scale"]


def mesh_of(data=1, fsdp=1, tensor=1):
    """Only the sizes count."""
    return SimpleNamespace(shape={"data": data, "fsdp": fsdp, "tensor": tensor})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        *((f"blocks/3/attn/{name}/kernel", COLUMNS) for name in ("qkv", "q", "k", "v", "c_q", "c_k", "c_v")),
        *((f"blocks/3/mlp/{name}/kernel", COLUMNS) for name in ("gate", "up", "fc")),
        *((f"blocks/3/{name}/kernel", ROWS) for name in ("attn/out", "attn/proj", "mlp/proj", "mlp/down")),
        ("tok_emb/embedding", P("fsdp", None)),
        ("blocks/3/ln1/scale", P()),
        ("blocks/3/mlp/pickup/kernel", P()),
        ("skip_weights", P()),
    ],
)
def test_every_matrix_has_its_rule(path, expected):
    assert spec_of(path, (64, 64), mesh_of(2, 2, 2), RULES) == expected


@given(st.sampled_from(PATHS), st.tuples(*[st.integers(1, 12)] * 2), *[st.sampled_from([1, 2, 3, 4])] * 3)
def test_an_axis_that_does_not_divide_is_dropped_and_the_other_stays(path, shape, data, fsdp, tensor):
    mesh = mesh_of(data, fsdp, tensor)
    rule, spec = (spec_of(path, (144, 144), m, RULES) for m in (mesh_of(), mesh))
    for size, wanted, found in zip(shape, rule, spec_of(path, shape, mesh, RULES), strict=False):
        assert found == (wanted if wanted is None or size % mesh.shape[wanted] == 0 else None)
    assert spec == rule  # 144 is a multiple of them all
    assert "fsdp" not in used_spec(spec)
    assert "data" not in spec


def test_a_leaf_with_fewer_axes_than_its_rule_is_on_every_device():
    assert spec_of("blocks/0/mlp/up/kernel", (64,), mesh_of(2, 2, 2), RULES) == P()


def specs(tree):
    return {path: leaf.sharding.spec for path, leaf in zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True)}


@pytest.fixture(scope="module")
def plan():
    """A mesh of one device: the axes are all there, and nothing is divided."""
    weights = [
        {"pattern": r".*/(up|out)/kernel", "kind": "map"},
        {"pattern": r".*/up/kernel", "kind": "gain"},
        {"pattern": r".*/(up|down)/kernel", "kind": "lora", "rank": 4},
    ]
    model = models.build("geglu", vocab_size=64, num_layers=1, model_dim=32, num_heads=2, weights=weights)
    config = TrainConfig(steps=9, batch_size=2, seq_len=8, ema_decay=0.9, on_thaw="keep", draw_maps="once")
    schedule = FreezeSchedule([(0, [(".*", True)]), (3, [(".*/gate/kernel", False), (".*", True)])])
    return RunPlan(model, config, schedule, make_mesh())


def test_moments_mean_and_kept_moments_lie_like_their_parameter_and_counts_on_every_device(plan):
    state = plan.abstract_state(1)
    of_params, of_moments, of_kept = specs(state.params), specs(state.opt_state), specs(state.kept)
    assert of_params["blocks/0/mlp/gate/kernel"] == COLUMNS
    assert of_params["blocks/0/mlp/down/kernel/base"] == ROWS
    whole = ["up/kernel/a", "up/kernel/b", "up/kernel/base/gain", "up/kernel/base/base/seed", "down/kernel/a"]
    assert {of_params[f"blocks/0/mlp/{name}"] for name in whole} == {P()}
    assert {path: spec for path, spec in specs(state.ema).items() if spec != of_params[path]} == {}
    moments = [(path, spec) for path, spec in of_moments.items() if "/mu/" in path or "/nu/" in path]
    assert len(moments) == 2 * len(jax.tree.leaves(state.ema))
    for path, spec in moments:
        (owner,) = [name for name in of_params if path.endswith("/" + name)]
        assert spec == of_params[owner], path
    assert {spec for path, spec in of_moments.items() if path.endswith("count")} == {P()}
    # Moments of frozen leaves are kept in a flat dict, under their whole path.
    assert len(of_kept) == 2
    assert all("gate" in path for path in of_kept)
    assert set(of_kept.values()) == {COLUMNS}


def test_stored_maps_lie_like_kernels_and_a_seed_on_every_device(plan):
    frozen = plan.arguments(0)[1]
    of_frozen = specs(frozen)
    assert of_frozen["blocks/0/mlp/up/kernel/base/base/levels"] == COLUMNS
    assert of_frozen["blocks/0/attn/out/kernel/levels"] == ROWS
    assert of_frozen["blocks/0/attn/out/kernel/seed"] == P()
    held = plan.held(plan.begin().split(plan.phases[0].mask)[1])
    assert specs(held) == of_frozen
    plain = draw_maps(plan.model.init(jax.random.key(0), jax.random.key(0)))
    one, other = (tree["blocks"][0]["attn"]["out"]["kernel"].levels for tree in (held, plain))
    assert bool((one == other).all())


def test_a_moment_of_another_shape_than_its_parameter_is_on_every_device():
    layout = Layout(make_mesh(), {"up": {"kernel": jnp.ones((4, 6))}}, [("up/kernel", COLUMNS)])
    state = {"row": {"up": {"kernel": jnp.ones(4)}}, "mu": {"up": {"kernel": jnp.ones((4, 6))}}, "count": jnp.ones([])}
    found = layout.shardings(state)
    assert found["mu"]["up"]["kernel"].spec == COLUMNS
    assert found["row"]["up"]["kernel"].spec == found["count"].spec == P()


class Counting(dict):
    """A dict that counts its look-ups, and cannot be gone through."""

    looked_up = 0

    def __contains__(self, key):
        self.looked_up += 1
        return super().__contains__(key)

    items = keys = values = __iter__ = None


@pytest.mark.parametrize("layers", [10, 400])
def test_shardings_look_up_the_ends_of_each_path_and_go_through_nothing(layers, monkeypatch):
    """Linear: what a state costs does not grow with how many parameters there are to compare it with."""
    params = {"blocks": [{"mlp": {"up": {"kernel": jnp.ones((4, 6))}}} for _ in range(layers)]}
    layout, state = Layout(make_mesh(), params, RULES), {"mu": params, "nu": params, "count": jnp.ones([])}
    told = []
    monkeypatch.setattr(sharding, "spec_of", lambda path, *_: told.append(path) or spec_of(path, *_))
    table = Counting(layout._stored)
    monkeypatch.setitem(layout.__dict__, "_stored", table)
    found = layout.shardings(state)
    assert {leaf.spec for leaf in jax.tree.leaves([found["mu"], found["nu"]])} == {COLUMNS}
    assert table.looked_up <= 6 * len(jax.tree.leaves(state))  # ['mu']['blocks'][3]['mlp']['up']['kernel'] has 6 ends
    assert len(told) == layers  # one rule is looked for per parameter, none per leaf of the state


DEVICES = list(range(8))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        *(((-1, 1, 1), (8, 1, 1, 1)), ((-1, 2, 2), (2, 2, 1, 2)), ((1, -1, 2), (1, 4, 1, 2))),
        *(((1, 1, -1), (1, 1, 1, 8)), ((2, 1, 1, -1), (2, 1, 4, 1)), ((-1, 1, 2, 2), (2, 1, 2, 2))),
    ],
)
def test_what_the_others_leave(sizes, expected):
    with mock.patch("freezejax.sharding.Mesh", lambda devices, *_, **__: devices.shape):
        assert make_mesh(*sizes, devices=DEVICES) == expected


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), r"train\.mesh: data=3 x fsdp=1 x expert=1 x tensor=1 is not the 8 devices"),
        ((-1, 3, 1), r"train\.mesh: fsdp=3 x expert=1 x tensor=1 does not divide the 8 devices"),
        ((-1, 16, 1), "fsdp=16 x expert=1 x tensor=1 does not divide the 8 devices"),
        ((-1, -1, 1), r"train\.mesh\.fsdp=-1: only one axis can be what the others leave"),
        ((8, 0, 1), r"train\.mesh\.fsdp=0: expected 1 or more"),
        ((8, 1, -2), r"train\.mesh\.tensor=-2: expected 1 or more"),
        ((8, 1, 1, 0), r"train\.mesh\.expert=0: expected 1 or more"),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(*sizes, devices=DEVICES)
