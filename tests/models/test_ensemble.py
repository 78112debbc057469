"""An ensemble is the mean of its members, each with the bits and the layout that it has alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from freezejax import models, roles
from freezejax.errors import UserError
from freezejax.models import ensemble, loss
from freezejax.paths import map_with_paths, named_key, stable_hash
from freezejax.sharding import make_mesh, spec_of
from freezejax.weights import maps_of

MAPS = {"pattern": r"blocks/\d+/mlp/(gate|up)/kernel", "kind": "map"}
GEGLU = {"family": "geglu", "vocab_size": 13, "num_layers": 1, "model_dim": 16, "num_heads": 1}
GOLF = {"family": "parameter_golf", "vocab_size": 13, "num_layers": 3, "model_dim": 16, "num_heads": 2}
LOOPED = {**GEGLU, "num_layers": 2, "weights": [{"pattern": "blocks/1/attn/.*", "kind": "shared", "block": 0}]}
MEMBERS = [{**GEGLU, "weights": [MAPS]}, {**GOLF, "num_kv_heads": 2}, LOOPED]
MIX = np.array([0.7, -0.4, 0.1], np.float32)
TOKENS = np.random.default_rng(0).integers(0, 13, (2, 9), dtype=np.int32)
INPUTS, TARGETS = TOKENS[:, :-1], TOKENS[:, 1:]


def _value(path, leaf):
    if leaf.dtype == np.uint32:
        return jnp.array([0, 7], jnp.uint32)  # the base seed
    noise = np.random.default_rng(stable_hash(path)).normal(size=leaf.shape)
    return jnp.asarray(path.endswith("scale") + 0.3 * noise, leaf.dtype)


@pytest.fixture(scope="module")
def alone():
    """Model, parameters and logits of each member by itself."""
    found = []
    for config in MEMBERS:
        model = models.build(**config)
        params = map_with_paths(_value, model.abstract_params())
        found.append((model, params, np.asarray(jax.jit(model.apply)(params, INPUTS), np.float64)))
    return found


def build(combine, members=MEMBERS):
    return models.build("ensemble", members=members, combine=combine)


@pytest.fixture(scope="module")
def joined(alone):
    return {**ensemble.join([params for _, params, _ in alone]), "mix": jnp.asarray(MIX)}


@pytest.fixture(scope="module")
def rest(joined):
    """What remains to run once all blocks have: `rest(combine, mix, **options)`, cheap to compile."""
    hidden = jax.jit(build("logits").prefix, static_argnames="blocks")(joined, INPUTS, blocks=3)

    def of_mix(combine, mix, **options):
        return build(combine).apply({**joined, "mix": mix}, INPUTS, blocks=3, hidden=hidden, **options)

    return of_mix


def wanted(alone, mix, combine):
    """In numpy: log probabilities [B, T, V] of the mean."""
    logits = np.stack([found for *_, found in alone])
    if combine == "logits":
        mean = np.tensordot(softmax(mix), logits, 1)
        return mean - logsumexp(mean, axis=-1, keepdims=True)
    return np.log(np.tensordot(softmax(mix), softmax(logits, axis=-1), 1))


def wanted_total(alone, mix, combine):
    return -np.take_along_axis(wanted(alone, mix, combine), TARGETS[..., None], -1).sum()


@pytest.mark.parametrize("combine", ["logits", "probabilities"])
def test_it_is_the_weighted_mean_of_what_its_members_say_alone(combine, alone, joined, rest, monkeypatch):
    found = np.asarray(jax.jit(build(combine).apply)(joined, INPUTS))
    log_p = wanted(alone, MIX, combine)
    np.testing.assert_allclose(found - logsumexp(found, axis=-1, keepdims=True), log_p, atol=1e-5)
    if combine == "logits":
        np.testing.assert_allclose(found, np.tensordot(softmax(MIX), [z for *_, z in alone], 1), atol=1e-5)
    assert np.abs(wanted(alone, np.zeros(3), combine) - log_p).max() > 0.1
    steps = 1e-4 * np.eye(3)
    slope = [wanted_total(alone, MIX + d, combine) - wanted_total(alone, MIX - d, combine) for d in steps]
    for logits in (2**24, 64):  # the second makes the head run in slices of positions
        monkeypatch.setattr(loss, "SLICE", logits)
        total = jax.jit(jax.value_and_grad(lambda mix: rest(combine, mix, targets_BxT=TARGETS).sum()))
        value, gradient = total(jnp.asarray(MIX))
        np.testing.assert_allclose(value, wanted_total(alone, MIX, combine), rtol=1e-5)
        np.testing.assert_allclose(gradient, np.array(slope) / 2e-4, rtol=1e-3)
        np.testing.assert_allclose(total(jnp.zeros(3))[0], wanted_total(alone, np.zeros(3), combine), rtol=1e-5)


def test_the_backward_pass_keeps_no_members_logits(rest, monkeypatch):
    monkeypatch.setattr(loss, "SLICE", 64)
    backward = jax.grad(lambda mix: rest("logits", mix, targets_BxT=TARGETS).sum())
    loops = [e for e in jax.make_jaxpr(backward)(jnp.asarray(MIX)).eqns if e.primitive.name == "scan"]
    sizes = [variable.aval.size for loop in loops for variable in loop.outvars]
    assert len(loops) == 2
    assert [size for size in sizes if size >= TARGETS.size * 13] == [TARGETS.size * 13]  # the mean, for the loss


def test_members_are_as_they_are_alone(alone, joined):
    model, mesh = build("logits"), make_mesh()
    model.check(joined)
    drawn = jax.jit(build("logits", MEMBERS[:1]).init)(jax.random.key(3), jax.random.key(7))
    ours, theirs = maps_of(drawn), maps_of(alone[0][1])
    assert [m.map for m in ours] == [m.map for m in theirs]  # names, and so bits, of the paths in the member
    np.testing.assert_array_equal(ours[0].seed, theirs[0].seed)
    by_itself = jax.jit(alone[0][0].init)(named_key(jax.random.key(3), "members/0"), jax.random.key(7))
    jax.tree.map(np.testing.assert_array_equal, drawn["members"][0], by_itself)
    whole = {leaf.path: leaf for leaf in roles.leaves(joined)}
    for index, (member, own, _) in enumerate(alone):
        for leaf in roles.leaves(own):
            there = whole[f"members/{index}/{leaf.path}"]
            pairs = ((there, model.sharding), (leaf, member.sharding))
            specs = [spec_of(found.kernel, (16, 16), mesh, rules) for found, rules in pairs]
            assert there.role is leaf.role
            assert specs[0] == specs[1]


def test_with_all_members_frozen_no_block_need_run_again(alone, joined, rest):
    mask = jax.tree.map(lambda _: False, joined) | {"mix": True}
    assert build("logits").frozen_blocks(mask) == build("logits").config.num_layers == 3
    found = rest("logits", jnp.asarray(MIX))
    np.testing.assert_allclose(found, np.tensordot(softmax(MIX), [z for *_, z in alone], 1), atol=1e-5)


REFUSED = {
    "no members": ([], "logits", "EnsembleConfig.members must be a list of models"),
    "one mapping": (GEGLU, "logits", "EnsembleConfig.members must be a list of models"),
    "no family": ([{"num_layers": 1}], "logits", "members[0]={'num_layers': 1} must name its family"),
    "a bad member": ([GEGLU, {**GEGLU, "num_heads": 3}], "logits", "members[1]: GegluConfig.num_heads=3"),
    "a bad pattern": ([{**GEGLU, "weights": [{**MAPS, "pattern": "x"}]}], "logits", "members[0]: weights[0]"),
    "other": (
        [GEGLU, {**MEMBERS[1], "vocab_size": 14}],
        "logits",
        "members[1] has vocab_size=14, members[0] 13",
    ),
    "another mean": ([GEGLU], "median", "EnsembleConfig.combine='median' must be logits or probabilities"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(case):
    members, combine, message = REFUSED[case]
    with pytest.raises(UserError) as error:
        build(combine, members)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_it_can_be_part_of_another(alone):
    inner = {"family": "ensemble", "members": MEMBERS[:2]}
    params = ensemble.join([ensemble.join([alone[0][1], alone[1][1]]), alone[2][1]])
    found = jax.jit(build("logits", [inner, LOOPED]).apply)(params, INPUTS)
    mean = (alone[0][2] + alone[1][2]) / 4 + alone[2][2] / 2
    np.testing.assert_allclose(found, mean, atol=1e-5)
