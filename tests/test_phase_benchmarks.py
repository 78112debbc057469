"""Benchmarks of prefixes, phase boundaries, compilation, sweeps and hybrids at a toy size; pages quote their data."""

import dataclasses
import json

import jax
import pytest

from benchmarks import compile_level, hybrid, pages, phase_switch, prefix_cache, sweep

BENCHMARKS = {
    **{"compile_level": compile_level, "phase_switch": phase_switch, "prefix_cache": prefix_cache},
    **{"sweep": sweep, "hybrid": hybrid},
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
