"""A kernel used in several blocks is one weight: the model computes and learns as with copies that move together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freezejax import artifact, models, trainable_mask
from freezejax.masks import count_parameters
from freezejax.models import importers
from freezejax.paths import leaf_paths
from freezejax.sharding import Layout, make_mesh
from freezejax.ties import untie
from freezejax.weights import count_seeded, merge, unmerge

MODEL = {"family": "geglu", "num_layers": 3, "model_dim": 64, "num_heads": 2, "vocab_size": 31}
LOOP = {"pattern": r"blocks/2/.*", "kind": "shared", "block": 0}
KEY = jax.random.key(3)
TOKENS = np.arange(24, dtype=np.int32).reshape(2, 12) % 31


def build(*rules):
    return models.build(**MODEL, weights=[*rules])


def loss(model, params):
    return jnp.mean(model.apply(params, TOKENS, targets_BxT=TOKENS[:, ::-1]))


def test_it_computes_what_copies_compute_and_its_gradient_is_the_sum_of_theirs():
    model, plain = build(LOOP), models.build(**MODEL)
    params = model.init(KEY)
    copies = untie(params)
    assert leaf_paths(copies) == leaf_paths(plain.init(KEY))
    found, grads = jax.value_and_grad(lambda p: loss(model, p))(params)
    wanted, each = jax.value_and_grad(lambda p: loss(plain, p))(copies)
    assert found == wanted
    up, down = (lambda tree, i=i: tree["blocks"][i]["mlp"]["up"]["kernel"] for i in (0, 2))
    np.testing.assert_allclose(up(grads), up(each) + down(each), atol=1e-6)
    assert np.abs(down(each)).max() > 1e-4  # counterpart: the second use does count
    np.testing.assert_allclose(grads["blocks"][1]["mlp"]["up"]["kernel"], each["blocks"][1]["mlp"]["up"]["kernel"])


def test_it_is_counted_masked_and_stored_once(tmp_path):
    model, plain = build(LOOP), models.build(**MODEL)
    params = model.init(KEY)
    kernels = sum(leaf.size for leaf in jax.tree.leaves(params["blocks"][0]) if leaf.ndim == 2)
    assert count_parameters(params) == count_parameters(plain.abstract_params()) - kernels
    assert not [path for path in leaf_paths(params) if path.startswith("blocks/2") and path.endswith("kernel")]
    trainable_mask(params, [(r"blocks/0/.*", False), (".*", True)])
    config = {**MODEL, "weights": [LOOP]}
    saved = artifact.save(tmp_path / "x.fjax", params, model=config, compressor="none")
    whole = artifact.predict_size(plain.abstract_params(), compressor="none").high
    assert saved.bytes < whole - 6 * kernels // 8
    assert saved.bytes == artifact.predict_size(params, model=config, compressor="none").high
    apply, loaded, _ = artifact.load(tmp_path / "x.fjax")
    np.testing.assert_array_equal(apply(loaded, TOKENS), model.apply(artifact.quantize(params), TOKENS))


def test_what_is_shared_may_be_of_any_kind_and_each_use_may_have_an_adapter():
    rules = [
        {"pattern": r"blocks/0/mlp/up/kernel", "kind": "map"},
        {"pattern": r"blocks/2/mlp/.*", "kind": "shared", "block": 0},
        {"pattern": r"blocks/\d/mlp/up/kernel", "kind": "lora", "rank": 2},
    ]
    model = build(*rules)
    params = model.init(KEY)
    assert count_seeded(params) == 64 * 128
    up = lambda i: params["blocks"][i]["mlp"]["up"]["kernel"]  # noqa: E731
    assert not np.array_equal(up(0).a, up(2).a)
    moved = jax.tree.map(lambda x: x, params)
    moved["blocks"][2]["mlp"]["up"]["kernel"] = jax.tree.map(lambda x: x + 0.1, up(2))
    assert loss(model, moved) != loss(model, params)
    # The adapter of the first use belongs to what is shared: it stands under the second use's own.
    inner = untie(params)["blocks"][2]["mlp"]["up"]["kernel"].base
    np.testing.assert_array_equal(inner.a, up(0).a)


def test_under_an_adapter_it_is_saved_as_a_matrix_of_its_own_and_merged_once_it_is_untied(tmp_path, check_refused):
    looped = {**LOOP, "pattern": "blocks/1/mlp/.*"}
    rules = [looped, {"pattern": ".*/1/.*/up_proj/kernel", "kind": "lora", "rank": 2}]
    sizes = {
        **MODEL,
        "family": "llama",
        "num_layers": 2,
        "model_dim": 16,
        "num_kv_heads": 1,
        "head_dim": 8,
        "mlp_mult": 2,
    }
    model = models.build(**sizes, weights=rules)
    params = jax.tree.map(lambda leaf: leaf + 0.1, model.init(KEY))
    wanted = jax.jit(model.apply)(params, TOKENS)
    models.save_pretrained(tmp_path / "model", model, params)
    _, loaded = models.load_pretrained(tmp_path / "model")
    np.testing.assert_allclose(jax.jit(model.apply)(loaded, TOKENS), wanted, atol=1e-5)
    merged, state = merge(untie(params)), importers.state_to_torch(model, params)
    first, second = (merged["blocks"][i]["mlp"]["up_proj"]["kernel"] for i in (0, 1))
    np.testing.assert_array_equal(state["model.layers.0.mlp.up_proj.weight"].T, first)
    np.testing.assert_array_equal(state["model.layers.1.mlp.up_proj.weight"].T, second)
    assert np.abs(first - second).max() > 1e-3
    own = params["blocks"][1]["mlp"]["up_proj"]
    for call in (lambda: merge(params), lambda: unmerge({"kernel": second}, own)):
        check_refused(
            call, "a LoraWeight stands over the kernel of 'blocks/0/mlp/up_proj/kernel', which it shares: with"
        )


def test_on_a_mesh_it_computes_the_same():
    model = build(LOOP)
    params = model.init(KEY)
    layout = Layout(make_mesh(), jax.eval_shape(lambda: params), model.sharding)
    np.testing.assert_allclose(jax.jit(lambda p: loss(model, layout.at_use(p)))(params), loss(model, params), rtol=1e-5)


BAD = {
    "no block": ({"block": 7}, "tied to 'blocks/7/.*', which is missing"),
    "itself": ({"pattern": r"blocks/0/mlp/.*"}, "block=0: a kernel cannot be shared with itself"),
    "no number": ({"block": "first"}, "block='first' must be the number of a block"),
    "in a circle": ({"pattern": r"blocks/[12]/mlp/.*", "block": 2}, "a kernel cannot be shared with itself"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_shared_is_told(name, check_refused):
    change, message = BAD[name]
    check_refused(lambda: build({**LOOP, **change}), message)


def test_a_chain_of_sharing_is_told(check_refused):
    rules = [LOOP, {"pattern": "blocks/0/.*", "kind": "shared", "block": 1}]
    check_refused(lambda: build(*rules), "which is missing")
