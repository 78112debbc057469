"""The step benchmarks run at a toy size, their checks fail where they should, and the pages quote their figures."""

import dataclasses
import json
import os
import sys

import jax
import numpy as np
import pytest

from benchmarks import freezing, matmuls, pages, step
from benchmarks.running_step import EVERYTHING, GATE_UP, Sizes, phase
from freezejax import UserError
from freezejax.models.importers import params_from_torch

TINY = Sizes(num_layers=4, model_dim=16, num_heads=1, vocab_size=16, batch_size=2, seq_len=16)
pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture
def optax_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        yield


def read(module):
    if not module.RESULTS.is_file():
        pytest.skip(f"{module.RESULTS.name} is not committed yet")
    return json.loads(module.RESULTS.read_text(encoding="utf-8"))


def test_what_is_frozen_saves_flops_and_memory_and_recipes_do_not():
    rules = freezing.cases(TINY.num_layers)
    programs = {name: phase(TINY, rules[name]) for name in (freezing.ALL, freezing.FROZEN, "prefix of 50 %")}
    made = freezing.recipes(TINY)
    costs = {name: freezing._costs(program) for name, program in (programs | made).items()}
    everything, ours = costs[freezing.ALL], costs[freezing.FROZEN]
    for saved in (ours, costs["prefix of 50 %"]):
        assert saved["flops"] < 0.95 * everything["flops"]
        assert saved["argument_bytes"] < everything["argument_bytes"]
        assert saved["differentiated"] < everything["differentiated"]
    for name in ("clip outside multi_transform", "optax.masked", "traced mask"):
        assert costs[name]["flops"] > 1.03 * ours["flops"], name
    moved = {name: freezing._largest_change(program, GATE_UP) for name, program in made.items()}
    assert moved["clip outside multi_transform"] == moved["traced mask"] == 0
    assert moved["optax.masked"] > 1e-4  # its frozen leaves get the raw gradient as their update
    assert moved["zeroed gradients"] > 0  # decay moves them


def test_every_case_freezes_something_else():
    params = jax.eval_shape(TINY.model().init, jax.random.key(0))
    masks = [freezing.trainable_mask(params, rules) for rules in freezing.cases(TINY.num_layers).values()]
    shares = [sum(jax.tree.leaves(mask)) for mask in masks]
    assert max(shares) == shares[0] == len(jax.tree.leaves(params))
    assert len({str(mask) for mask in masks}) == len(masks) == 8


def test_orders_for_pytorch_hold_our_parameters_and_what_is_frozen(tmp_path):
    settings = dataclasses.replace(step.QUICK, sizes=TINY)
    names = step.write_orders(tmp_path, settings)
    assert names[:2] == [("everything trained", "torch"), ("gate and up frozen", "torch")]
    config = json.loads((tmp_path / "config.json").read_text())
    frozen = config["programs"]["gate and up frozen/torch"]["frozen"]
    assert len(frozen) == 2 * TINY.num_layers
    assert config["programs"]["everything trained/torch"]["frozen"] == []
    model = TINY.model()
    with np.load(tmp_path / "arrays.npz") as file:
        arrays = dict(file)
    assert set(frozen) < arrays.keys()
    state = {name: array for name, array in arrays.items() if name not in ("inputs", "targets")}
    jax.tree.map(np.testing.assert_array_equal, params_from_torch(model, state), model.init(jax.random.key(0)))


@pytest.mark.parametrize("product", matmuls.products(TINY), ids=lambda product: product.name)
def test_a_part_of_a_matmul_is_what_it_says_and_nothing_else(product):
    program, arguments = matmuls.compile_product(product)
    assert program.cost_analysis()["flops"] == product.flop  # neither the forward nor the other gradient is left in it
    x, weight_OxI, grad = matmuls.operands(product).values()
    wanted = {"forward": x @ weight_OxI.T, "dX": grad @ weight_OxI, "dW": grad.T @ x}[product.part]
    found = np.asarray(program(*arguments))
    if product.part == "dW" and not product.transposed:
        found = found.T
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert matmuls.ours(product)(2) == pytest.approx(wanted.diagonal()[: matmuls.CHECKED], abs=1e-4)


def test_every_kernel_shape_of_the_step_is_measured_once():
    shapes = {(p.weight, p.inner, p.outer) for p in matmuls.products(Sizes())}
    assert shapes == {
        ("out", 192, 192),
        ("qkv", 192, 576),
        ("down", 384, 192),
        ("gate, up", 192, 384),
        ("head", 192, 256),
    }
    assert {p.tokens for p in matmuls.products(Sizes())} == {8 * 256}


def test_orders_for_pytorch_hold_every_matmul_with_its_operands(tmp_path):
    names = step.write_orders(tmp_path, dataclasses.replace(step.QUICK, sizes=TINY))
    config = json.loads((tmp_path / "config.json").read_text())
    with np.load(tmp_path / "operands.npz") as file:
        for product in matmuls.products(TINY):
            assert (product.name, "torch") in names
            order = config["programs"][f"{product.name}/torch"]
            assert order["part"] == product.part
            for name, array in matmuls.operands(product).items():
                np.testing.assert_array_equal(file[f"{order['operands']}/{name}"], array)


def test_rates_are_flops_over_time_and_other_results_end_the_benchmark():
    measured = matmuls.products(TINY)[:2]
    torch = {product.name: matmuls.ours(product) for product in measured}
    rows = matmuls.time_products(measured, torch, rounds=2)
    assert [(row["part"], row["name"]) for row in rows] == [
        (part, side) for part in ("forward", "dX") for side in ("freezejax", "torch")
    ]
    for row in rows:
        flop = 2 * row["tokens"] * row["inner"] * row["outer"]
        assert row["gflop_per_s"] == pytest.approx(flop / (row["ms_median"] / 1e3) / 1e9)
    assert f"| {rows[2]['gflop_per_s']:.0f} | {rows[3]['gflop_per_s']:.0f} |" in matmuls.write_table(rows)
    forward, dx = measured
    with pytest.raises(UserError, match="forward of out: PyTorch's result differs from ours"):
        matmuls.time_products([forward], {forward.name: torch[dx.name]}, rounds=1)


def test_losses_that_differ_end_the_benchmark():
    run = phase(TINY, EVERYTHING).run
    losses = run(2)
    same = {("case", "freezejax"): lambda _: losses, ("case", "torch"): lambda _: [x + 5e-5 for x in losses]}
    assert step.check_losses(same, 2)["case"] == pytest.approx(5e-5, rel=0.1)
    for wrong in (2e-4, float("nan")):
        other = same | {("case", "torch"): lambda _, wrong=wrong: [x + wrong for x in losses]}
        with pytest.raises(UserError, match="case: the losses of torch differ from ours"):
            step.check_losses(other, 2)


def test_a_python_without_torch_is_told_in_one_line():
    with (
        pytest.raises(UserError, match="must be a Python that has torch and numpy"),
        step.torch_process(sys.executable, step.QUICK),
    ):
        pass
    with (
        pytest.raises(UserError, match="nowhere/python does not start"),
        step.torch_process("nowhere/python", step.QUICK),
    ):
        pass


@pytest.mark.skipif(
    "FREEZEJAX_TORCH_PYTHON" not in os.environ, reason="FREEZEJAX_TORCH_PYTHON names no Python with torch"
)
def test_pytorch_computes_the_same_losses():
    found = step.measure(dataclasses.replace(step.QUICK, rounds=1), os.environ["FREEZEJAX_TORCH_PYTHON"])
    assert max(found["loss_difference"].values()) <= step.TOLERANCE
    assert len(found["matmuls"]) == 2 * len(matmuls.products(step.QUICK.sizes))
    made = step.write_tables({found["machine"]["processor"]: found})
    assert made.keys() == {"times", "matmuls", "pieces", "memory", "machine"}
    assert "dW" in made["matmuls"]


def entry(processor, **changes):
    return {"machine": {"processor": processor}, **changes}


def test_a_run_replaces_the_entry_of_its_own_processor_and_keeps_the_others(tmp_path):
    path = tmp_path / "step.json"
    before = step.with_entry(str(path), lambda: entry("AMD EPYC", run=1))
    assert before == {"AMD EPYC": entry("AMD EPYC", run=1)}
    path.write_text(json.dumps(before))
    both = step.with_entry(str(path), lambda: entry("Intel Xeon", run=2))
    assert both == before | {"Intel Xeon": entry("Intel Xeon", run=2)}
    path.write_text(json.dumps(both))
    assert step.with_entry(str(path), lambda: entry("AMD EPYC", run=3)) == both | {"AMD EPYC": entry("AMD EPYC", run=3)}
    assert step.with_entry(None, lambda: entry("AMD EPYC", run=4)) == {"AMD EPYC": entry("AMD EPYC", run=4)}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"a": {"machine": {"processor": "b"}}}', "\xff"])
def test_a_json_of_something_else_is_told_before_anything_is_measured(text, tmp_path):
    path = tmp_path / "other.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"other.json is no JSON of this benchmark"):
        step.with_entry(str(path), lambda: pytest.fail("measured"))
    assert path.read_bytes() == text.encode("latin-1")


def test_pages_show_every_processor():
    (name, found), *_ = read(step).items()
    other = json.loads(json.dumps(found).replace(name, "Other"))
    alone, both = step.write_tables({name: found}), step.write_tables({name: found, "Other": other})
    for block, text in alone.items():
        assert both[block] == f"{text}\n\n{text.replace(name, 'Other')}"
        assert name in text


@pytest.mark.parametrize("module", [step, freezing], ids=["step", "freezing"])
def test_pages_quote_the_committed_figures(module):
    found = read(module)
    name = module.RESULTS.stem
    entries = found.values() if module is step else [found]
    for one in entries:
        assert one["settings"] == json.loads(json.dumps(dataclasses.asdict(module.Settings())))
    for page in module.PAGES:
        text = page.read_text(encoding="utf-8")
        assert f"<!-- {name}: " in text
        assert pages.fill(text, name, module.write_tables(found)) == text
