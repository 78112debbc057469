"""Pieces of a step: what their own backward buys over jax's, and what keeping freed memory does.

    python -m benchmarks.pieces kept
    python -m benchmarks.pieces "handed back"

print page faults and CPU time of a step as one line of JSON. `benchmarks/step.py` runs both, and the rest of this file.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.running_step import Sizes, phase
from benchmarks.timing import compare, interleave
from experiments.engine import accelerators
from freezejax.models import layers
from freezejax.models.attention import blocked_attention

_STEPS = 5
KEPT = "kept"


def time_pieces(sizes: Sizes, rounds: int) -> list[dict[str, Any]]:
    """Forward and backward of one layer's attention, GEGLU and norm: ours against jax's own, float32."""
    B, T, H, dim = sizes.batch_size, sizes.seq_len, sizes.num_heads, sizes.model_dim
    wide, hidden, heads = (B, T, dim), (B, T, 2 * dim), (B, T, H, dim // H)

    def norm(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)

    pieces: dict[str, tuple[Any, Any, list[tuple[int, ...]]]] = {
        "attention": (blocked_attention, _attention, [heads] * 3),
        "geglu": (layers.geglu, lambda gate, up: jax.nn.gelu(gate, approximate=False) * up, [hidden] * 2),
        "norm": (lambda x: layers.rms_norm(x, 1e-6), norm, [wide]),
    }
    rows = []
    for piece, (ours, plain, shapes) in pieces.items():
        calls = {"jax": _both_passes(plain, shapes), "freezejax": _both_passes(ours, shapes)}
        rows += [{"piece": piece, **row} for row in compare(interleave(calls, rounds), "jax")]
    return rows


def _attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def _both_passes(function: Callable[..., jax.Array], shapes: list[tuple[int, ...]]) -> Callable[[], Any]:
    arguments = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]

    def both(*arguments: jax.Array) -> Any:
        y, backward = jax.vjp(function, *arguments)
        return y, backward(y)

    compiled = jax.jit(both).lower(*arguments).compile()
    return lambda: jax.block_until_ready(compiled(*arguments))


def memory_kept(sizes: Sizes) -> list[dict[str, Any]]:
    """Page faults and CPU time of a step, freed memory handed back and kept, each in a process of its own."""
    rows = []
    for form in ("handed back", KEPT):
        command = [sys.executable, "-m", "benchmarks.pieces", form, json.dumps(vars(sizes))]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        rows.append({"freed": form, **found})
    return rows


def _print_memory(form: str, sizes: Sizes) -> None:
    if form == KEPT:
        accelerators.keep_freed_memory()
    program = phase(sizes)
    program.run(2 * _STEPS)  # until the heap has grown to what overlapping steps need
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    program.run(_STEPS)
    after, cpu = resource.getrusage(resource.RUSAGE_SELF), time.process_time() - start
    found = {
        "page_faults": (after.ru_minflt - before.ru_minflt) / _STEPS,
        "cpu_ms": 1e3 * cpu / _STEPS,
        "kernel_ms": 1e3 * (after.ru_stime - before.ru_stime) / _STEPS,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    _print_memory(sys.argv[1], Sizes(**json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}")))
