"""The size is known before training: exact for packed codecs, inside the stated interval for entropy-coded ones."""

import jax
import numpy as np
import pytest

from freezejax import artifact, models
from freezejax.artifact import container, header
from freezejax.artifact.encode import quantize_leaf
from freezejax.weights import MapWeight, RandomMap

RULES = [("role=adapter", "int8"), (".*", "int6")]
GATE_UP = [{"pattern": ".*/(gate|up)/kernel", "kind": "map"}]
CODED = sorted(set(artifact.COMPRESSORS) - {"none"})


@pytest.mark.parametrize("name", ["geglu", "parameter_golf", "maps"])
@pytest.mark.parametrize("codec", [*artifact.CODECS, RULES], ids=str)
def test_packed_files_are_predicted_to_the_byte(name, codec, trained, tmp_path):
    config, params = trained(name)
    options = {"model": config, "codec": codec, "notes": {"a": 1}, "tokenizer": {"name": "bytes", "sha256": "0"}}
    saved = artifact.save(tmp_path / "x.fjax", params, compressor="none", **options)
    shapes = jax.eval_shape(models.build(**config).init, jax.random.key(0))
    predicted = artifact.predict_size(shapes, **options)
    assert predicted.low == predicted.high == predicted.gaussian == saved.bytes
    payload = sum(saved.sizes[part] for part in ("seed", "scales", "small", "codes"))
    assert artifact.predict_bytes(shapes, codec) == payload
    bare = artifact.predict_size(shapes, codec=codec)  # nothing known but shapes
    assert abs(bare.high / saved.bytes - 1) < 0.03


def test_a_model_of_ones_own_is_predicted_to_the_byte(tmp_path):
    def tree(distribution):
        drawn = RandomMap((64, 64), distribution, name="up")
        return {"w": np.ones((80, 80), np.float32), "up": MapWeight.create(drawn, jax.random.key(1))}

    for distribution in ("normal", "orthogonal_qr"):
        saved = artifact.save(tmp_path / "x.fjax", tree(distribution), compressor="none")
        shapes = jax.eval_shape(lambda: tree(distribution))  # noqa: B023
        assert artifact.predict_size(shapes).high == saved.bytes


@pytest.mark.parametrize("compressor", CODED)
@pytest.mark.parametrize("codec", artifact.CODECS)
@pytest.mark.parametrize("tails", ["normal", "student"])
def test_entropy_coded_files_lie_in_the_interval(codec, compressor, tails):
    rng = np.random.default_rng(0)
    draw = rng.normal if tails == "normal" else lambda size: rng.standard_t(3, size)
    params = {"up": {"kernel": (draw(size=(256, 192)) / 16).astype(np.float32)}}
    predicted = artifact.predict_size(params, codec=codec, compressor=compressor)
    top = header.make_header(params, {"family": "geglu"}, codec, compressor)
    leaves = [quantize_leaf(top.tensors[0], params["up"]["kernel"])]
    size = len(container.to_bytes(top, None, leaves))
    assert predicted.low <= size <= predicted.high
    if tails == "normal" and (compressor, codec) not in {("zlib", "int5"), ("zstd", "float16")}:
        assert abs(size / predicted.gaussian - 1) < 0.05


def test_a_matrix_costs_its_bits_and_two_bytes_a_row():
    shapes = {
        "up": {"kernel": jax.ShapeDtypeStruct((100, 80), np.float32)},
        "tok_emb": {"embedding": jax.ShapeDtypeStruct((100, 80), np.float32)},
        "scale": jax.ShapeDtypeStruct((80,), np.float32),
        "map": jax.eval_shape(lambda key: MapWeight.create(RandomMap((64, 64)), key), jax.random.key(0)),
    }
    for codec, bits in {"int8": 8, "int6": 6, "int5": 5, "int4": 4}.items():
        assert artifact.predict_bytes(shapes, codec) == 2 * 8000 * bits // 8 + 2 * (80 + 100) + 2 * 80 + 8
    assert artifact.predict_bytes(shapes, "float16") == 2 * 2 * 8000 + 2 * 80 + 8


def test_trained_then_frozen_is_billed_and_seeded_is_not(trained):
    plain, seeded = (
        jax.eval_shape(models.build(**config).init, jax.random.key(0))
        for config in ({**trained("geglu")[0], "weights": weights} for weights in ([], GATE_UP))
    )
    saved = artifact.predict_bytes(plain, "int8") - artifact.predict_bytes(seeded, "int8")
    assert saved == 4 * (64 * 128 + 2 * 128) - 8


def file_bytes(params, model):
    top = header.make_header(params, model)
    leaves = [quantize_leaf(t, np.asarray(params[t.path])) for t in top.tensors]
    return len(container.to_bytes(top, (0, 1), leaves))


def test_ten_maps_cost_sixteen_bytes_each_at_most_and_nothing_where_the_recipe_is_shared():
    stored = {f"kept/{i}/kernel": np.ones((80, 80), np.float32) for i in range(3)}
    names = [f"blocks/{i}/mlp/up/kernel" for i in range(11)]
    maps = [MapWeight.create(RandomMap((512, 2048), name=name), jax.random.key(1)) for name in names]
    kinds = ["normal", "uniform", "rademacher", "hadamard"]
    recipes = [{"pattern": n, "kind": "map", "distribution": kinds[i % 4]} for i, n in enumerate(names)]
    shared = [{"pattern": "blocks/.*", "kind": "map", "distribution": "normal"}]

    def grown(before, after):
        one, eleven = ({**stored, **dict(zip(names[:n], maps[:n], strict=True))} for n in (1, 11))
        model = {"family": "geglu", "num_layers": 3}
        return file_bytes(eleven, {**model, "weights": after}) - file_bytes(one, {**model, "weights": before})

    assert grown(shared, shared) == 0
    assert 0 < grown(recipes[:1], recipes) < 16 * 10


def test_ten_kernels_that_become_maps_leave_the_file(trained, tmp_path):
    config = {**trained("geglu")[0], "num_layers": 5}
    sizes = []
    for weights in ([], GATE_UP):
        model = {**config, "weights": weights}
        params = models.build(**model).init(jax.random.key(0))
        sizes.append(artifact.save(tmp_path / "x.fjax", params, model=model, compressor="none").sizes)
    assert sizes[0]["codes"] - sizes[1]["codes"] == 10 * 64 * 128 * 6 // 8
    assert sizes[1]["seed"] == 8
    assert sizes[1]["header"] < sizes[0]["header"]  # ten tensors fewer to name, one rule more
