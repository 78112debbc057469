"""Per-row integers: bounded error, clipping that never loses, and the challenge's codec as an independent check."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezejax import artifact
from freezejax.artifact import codecs
from freezejax.artifact.tensors import stored_tensors
from freezejax.errors import UserError
from freezejax.weights import LoraWeight, LowBitWeight, MapWeight, RandomMap

integer_codecs = st.sampled_from(sorted(codecs.BITS))


@st.composite
def matrices(draw):
    """Float32 rows of very different widths and tails, some of them zero."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, length = draw(st.integers(1, 9)), draw(st.integers(1, 300))
    x = rng.standard_t(draw(st.sampled_from([1.5, 3, 100])), (rows, length))
    x = np.clip(x, -1e3, 1e3) * 10.0 ** rng.uniform(-5, 1, (rows, 1))
    return (x * rng.integers(0, 4, (rows, 1)).clip(0, 1)).astype(np.float32)


def squared_error(x, rows):
    return np.sum(np.square(x - codecs.dequantize_rows(rows), dtype=np.float64), axis=1)


@given(matrices(), integer_codecs)
def test_clipping_by_squared_error_never_loses_to_the_largest_magnitude(x, codec):
    clipped = squared_error(x, codecs.quantize_rows(x, codec))
    assert (clipped <= squared_error(x, codecs.quantize_rows(x, codec, clip=False)) * (1 + 1e-4) + 1e-30).all()


def test_clipping_wins_where_one_weight_is_far_out():
    x = np.random.default_rng(0).normal(size=(4, 512)).astype(np.float32)
    x[:, 0] = 12

    def wins(clip):
        plain = squared_error(x, codecs.quantize_rows(x, "int4", clip=False))
        assert (squared_error(x, codecs.quantize_rows(x, "int4", clip=clip)) < 0.8 * plain).all()

    wins(clip=True)
    with pytest.raises(AssertionError):  # the search switched off
        wins(clip=False)


@given(matrices(), integer_codecs)
def test_codes_in_range_and_error_within_half_a_step_where_nothing_is_clipped(x, codec):
    rows = codecs.quantize_rows(x, codec, clip=False)
    assert np.abs(rows.codes.astype(int)).max(initial=0) <= codecs.qmax(codec)
    step = rows.scales.astype(np.float64)[:, None]
    # A scale rounded down to float16 cuts off at most its rounding error, 2^-11 relative or half of 2^-24.
    cut = codecs.qmax(codec) * np.maximum(step * 2.0**-11, 2.0**-25)
    assert (np.abs(x - codecs.dequantize_rows(rows)) <= step / 2 + cut + 1e-12).all()


@given(matrices(), integer_codecs)
def test_dequantized_weights_are_exact_and_quantize_to_themselves(x, codec):
    rows = codecs.quantize_rows(x, codec)
    exact = rows.codes.astype(np.float64) * rows.scales.astype(np.float64)[:, None]
    assert (codecs.dequantize_rows(rows) == exact).all()
    assert (rows.scales[~x.any(axis=1)] == 0).all()


ROWS = {  # shape, shape in rows, and the row of number 1
    "mlp/up/kernel": ((3, 4), (4, 3), np.s_[:, 1]),
    "tok_emb/embedding": ((3, 4), (3, 4), np.s_[1]),
    "conv/kernel": ((3, 4, 5), (5, 12), np.s_[..., 1]),
    "mixer/experts/up_proj/kernel": ((3, 4, 5), (15, 4), np.s_[0, :, 1]),
    "mixer/experts/up_proj/kernel/2/a": ((4, 5), (5, 4), np.s_[:, 1]),
}


@pytest.mark.parametrize("path", ROWS)
def test_rows_are_output_features(path):
    shape, in_rows, second = ROWS[path]
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    rows = codecs.to_rows(path, x)
    assert rows.shape == in_rows
    assert codecs.count_rows(path, shape) == len(rows)
    assert rows[1].tolist() == x[second].reshape(-1).tolist()
    assert (codecs.from_rows(path, rows, shape) == x).all()


def test_a_small_expert_beside_a_large_one_keeps_its_precision():
    """The counterpart: as one tensor [E * in, out], in which they share scales, the small one is lost."""
    x = np.random.default_rng(0).standard_normal((2, 32, 8)).astype(np.float32) * np.float32([1.0, 1e-3])[:, None, None]

    def small(path, shape):
        rows = codecs.quantize_rows(codecs.to_rows(path, x.reshape(shape)), "int6")
        restored = codecs.from_rows(path, codecs.dequantize_rows(rows), shape).reshape(x.shape)
        return codecs.sqnr_db(x[1], restored[1])

    assert small("experts/up_proj/kernel", (2, 32, 8)) > 25
    assert small("mlp/up/kernel", (64, 8)) < 1


def test_tiny_rows_get_the_smallest_scale_and_large_ones_the_largest():
    x = np.array([[1e-7, -1e-7], [1e-30, 0], [127 * 65500.0, 0]], np.float32)
    rows = codecs.quantize_rows(x, "int8")
    assert rows.scales.tolist() == [2.0**-24, 2.0**-24, 65504.0]
    assert np.abs(x - codecs.dequantize_rows(rows)).max() < 127 * 65500 * 2e-3


@pytest.mark.parametrize("codec", sorted(codecs.BITS))
def test_a_row_beyond_float16_scales_is_refused(codec):
    with pytest.raises(UserError, match="is too large"):
        codecs.quantize_rows(np.full((2, 3), 1e8, np.float32), codec)


def challenge_int8(x):
    """The baseline's codec, from its description: quantile clip, scale floored at 1/127, stored as float16."""
    clip = np.quantile(np.abs(x), 0.9999984, axis=1, keepdims=True)
    scale = np.maximum(clip / 127, 1 / 127)
    codes = np.clip(np.rint(np.clip(x, -clip, clip) / scale), -127, 127)
    return codes, scale.astype(np.float16)


def test_int8_agrees_with_the_challenge_where_its_floor_does_not_act():
    x = 3 * np.random.default_rng(1).normal(size=(16, 512)).astype(np.float32)
    codes, scale = challenge_int8(x)
    plain = codecs.quantize_rows(x, "int8", clip=False)
    assert (np.abs(plain.scales[:, None] / scale.astype(np.float64) - 1) < 1e-3).all()
    assert (np.abs(plain.codes - codes) <= 1).all()
    assert (plain.codes != codes).mean() < 0.05  # float16 rounding of the scale, which the baseline's codes ignore
    theirs = codecs.sqnr_db(x, codes * scale.astype(np.float64))
    assert theirs - 0.01 < codecs.sqnr_db(x, codecs.dequantize_rows(codecs.quantize_rows(x, "int8"))) < theirs + 1.5


def test_small_adapters_keep_their_digits_without_the_floor():
    x = 1e-3 * np.random.default_rng(2).normal(size=(16, 512)).astype(np.float32)
    codes, scale = challenge_int8(x)
    assert not codes.any()  # a step of 1/127 for weights of 1/1000
    assert codecs.sqnr_db(x, codecs.dequantize_rows(codecs.quantize_rows(x, "int8"))) > 38
    assert codecs.sqnr_db(x, codes * scale.astype(np.float64)) == pytest.approx(0)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("int7", "there is no codec 'int7'; nearest: int8"),
        ([("(", "int8")], r"rule '\(' is not a regular expression"),
        ([("tabel", "int8"), (".*", "int4")], "codec rule 'tabel' matches no leaf; nearest: table"),
        ([("table", "int8"), ("up/.*", "int6"), ("head", "int4")], "codec rule 'head' matches no leaf; nearest: "),
        ([(".*/kernel", "int8")], "no codec rule covers leaf 'table'; nearest: .*/kernel"),
    ],
)
def test_bad_rules_are_told(rules, message):
    with pytest.raises(UserError, match=message):
        stored_tensors({"up": {"kernel": np.zeros((80, 80))}, "table": np.zeros((80, 80))}, rules)


def test_a_rule_of_a_role_and_what_matches_a_seed_may_name_no_stored_leaf():
    seeded = MapWeight.create(RandomMap((80, 80), name="up"), jax.random.key(7))
    rules = [("role=adapter", "int8"), ("up/.*", "int4"), (".*", "int6")]
    assert stored_tensors({"up": seeded}, rules) == stored_tensors({}, rules) == []
    (only,) = stored_tensors({"up": seeded, "w": np.zeros((80, 80))}, rules)
    assert only.codec == "int6"


def test_the_first_matching_rule_wins():
    tree = {"w": {"a": np.zeros((80, 80)), "base": np.zeros((80, 80)), "b": np.zeros((8, 8))}}
    found = stored_tensors(tree, [(".*/(a|b)", "int8"), (".*", "int6")])
    assert {tensor.path: tensor.codec for tensor in found} == {"w/a": "int8", "w/b": "float16", "w/base": "int6"}


def test_small_adapters_are_coded_where_a_rule_of_their_role_saves_bytes():
    up = LoraWeight(np.zeros((60, 60)), np.zeros((60, 8)), np.zeros((8, 60)), 8.0)
    thin = LoraWeight(np.zeros((60, 60)), np.zeros((60, 1)), np.zeros((1, 60)), 1.0)  # a scale per number of b
    tree = {"up": up, "thin": thin, "mix": np.zeros((2, 60))}

    def coded(*rules):
        return {tensor.path for tensor in stored_tensors(tree, rules) if tensor.codec != "float16"}

    assert coded(("role=adapter", "int8"), (".*", "int6")) == {"up/a", "up/b", "thin/a"}
    few = LowBitWeight(np.zeros((8, 8)), np.zeros(8), levels=3, step=1.0)  # has levels of its own
    assert [tensor.codec for tensor in stored_tensors({"few": few}, "int8")] == ["levels3", "float16"]
    assert coded((".*", "int8")) == coded((".*/(a|b)", "int8"), (".*", "int6")) == set()


def test_a_small_coded_adapter_comes_back_within_its_steps(tmp_path):
    draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)  # noqa: E731
    params = {"up": LoraWeight(draw(0, 60, 60), draw(1, 60, 8), draw(2, 8, 60), 8.0), "scale": draw(3, 60)}
    sizes = {}
    for codec in ("int8", "float16"):
        rules = [("role=adapter", codec), (".*", "float16")]
        path = tmp_path / f"{codec}.fjax"
        sizes[codec] = artifact.save(path, params, codec=rules).bytes
        _, loaded, _ = artifact.load(path, like=params)
        for name in ("a", "b"):
            wanted, found = (np.asarray(getattr(tree["up"], name)) for tree in (params, loaded))
            steps = np.abs(wanted).max(axis=0) / 127
            assert (np.abs(found - wanted) <= {"int8": 1.5 * steps, "float16": 2e-3}[codec]).all()
    assert sizes["int8"] < sizes["float16"] - 300
