"""Benchmarks of prefixes, phase boundaries, compilation, sweeps, hybrids, adapters at a toy size; pages quote them."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import pytest

from benchmarks import adapters, compile_level, hybrid, pages, phase_switch, prefix_cache, sweep

BENCHMARKS = {
    **{"compile_level": compile_level, "phase_switch": phase_switch, "prefix_cache": prefix_cache},
    **{"sweep": sweep, "hybrid": hybrid, "adapters": adapters},
}


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """optax's Adam adds a float to an int32 count, on the threads that compile as well."""
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", before)


def slower(tree):
    """The same figures with every time in milliseconds doubled."""
    if isinstance(tree, list):
        return [slower(part) for part in tree]
    if isinstance(tree, dict):
        return {
            name: 2 * part + 1 if name.endswith("_ms") or "ms_" in name or name == "seconds" else slower(part)
            for name, part in tree.items()
        }
    return tree


@pytest.fixture(params=BENCHMARKS)
def benchmark(request):
    module = BENCHMARKS[request.param]
    return request.param, module, json.loads(module.RESULTS.read_text(encoding="utf-8"))


def test_a_quick_run_measures_what_the_committed_one_holds(benchmark):
    _, module, committed = benchmark
    quick = json.loads(json.dumps(module.measure(module.QUICK)))
    assert list(quick) == list(committed)
    assert module.write_tables(quick).keys() == module.write_tables(committed).keys()


def test_pages_quote_the_committed_figures(benchmark):
    kind, module, committed = benchmark
    assert committed["settings"] == json.loads(json.dumps(dataclasses.asdict(module.Settings())))
    for page in module.PAGES:
        text = page.read_text(encoding="utf-8")
        assert f"<!-- {kind}: " in text, page.name
        assert pages.fill(text, kind, module.write_tables(committed)) == text, page.name
        assert pages.fill(text, kind, module.write_tables(slower(committed))) != text


@pytest.mark.parametrize("form", adapters.FORMS)
def test_every_form_of_adapters_gives_the_same_outputs_and_gradients(form):
    x, loras = adapters.example(adapters.QUICK, 3, 16)
    if form == adapters.ALONE:
        loras = [dataclasses.replace(lora, b=jnp.zeros_like(lora.b)) for lora in loras]
    outputs, wanted = adapters.FORMS[form](x, loras), [x @ lora.materialize() for lora in loras]
    chex.assert_trees_all_close(list(outputs), wanted, atol=1e-5)
    if form != adapters.ALONE:
        found, plain = (adapters.gradients(each)(x, loras) for each in (adapters.FORMS[form], _plain))
        chex.assert_trees_all_close(found, plain, atol=1e-4, rtol=1e-4)


def _plain(x, loras):
    return [x @ lora.base + x @ lora.a @ lora.b * lora.scale for lora in loras]
