"""The parts of a hybrid model: Mamba-2 against its own recurrence and attention by length; experts against dense ones.

    python -m benchmarks.hybrid --json=benchmarks/results/hybrid.json
    python -m benchmarks.hybrid --write_docs

The first measures, prints its tables and writes them as JSON: some five minutes on 2 quiet CPU cores; with --quick a
toy size. The second writes the committed JSON's tables into docs/performance.md, and measures nothing. All programs of
a table run in turns in one process; each takes a loss and its gradient by every input.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import command, pages, timing
from benchmarks.tables import table
from freezejax import models
from freezejax.models.grouped import blocks, grouped
from freezejax.models.ssd import ssd

RESULTS = pages.RESULTS / "hybrid.json"
PAGES = (pages.PERFORMANCE,)
CHUNKED, ALONE, ATTENTION = "chunks", "token by token", "attention"
GROUPED, RAGGED = "grouped", "`jax.lax.ragged_dot`"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of one layer, and how often each program runs."""

    lengths: tuple[int, ...] = (256, 1024, 4096)
    heads: int = 8
    head_dim: int = 64
    state_dim: int = 64
    chunk: int = 128
    experts: tuple[int, ...] = (8, 32, 128)
    choices: int = 2
    tokens: int = 2048
    model_dim: int = 256
    expert_width: int = 256
    rounds: int = 5


QUICK = Settings((8, 16), 2, 4, 4, 8, (2, 4), 1, 32, 8, 8, 2)


def measure(settings: Settings) -> dict[str, Any]:
    """Everything, as it stands in the JSON."""
    lengths = {length: _compare(_by_length(settings, length), CHUNKED, settings.rounds) for length in settings.lengths}
    experts = {count: _compare(_by_experts(settings, count), GROUPED, settings.rounds) for count in settings.experts}
    return {
        "settings": dataclasses.asdict(settings),
        **pages.environment(),
        "lengths": [{"size": length, **row} for length, rows in lengths.items() for row in rows],
        "experts": [{"size": count, **row} for count, rows in experts.items() for row in rows],
    }


def _compare(programs: Mapping[str, tuple[Any, ...]], reference: str, rounds: int) -> list[dict[str, Any]]:
    calls = {}
    for name, (of, *inputs) in programs.items():
        gradient = jax.jit(jax.grad(lambda xs, of=of: jnp.sum(jnp.square(of(*xs)))))
        compiled = gradient.lower(inputs).compile()
        calls[name] = lambda compiled=compiled, inputs=inputs: jax.block_until_ready(compiled(inputs))
    return timing.compare(timing.interleave(calls, rounds), reference)


def _normal(*shapes: tuple[int, ...]) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def _by_length(settings: Settings, length: int) -> dict[str, tuple[Any, ...]]:
    heads, dim, state = settings.heads, settings.head_dim, settings.state_dim
    x, b, c, dt, a = _normal((1, length, heads, dim), *[(1, length, 1, state)] * 2, (1, length, heads), (heads,))
    dt, a, zeros = jax.nn.softplus(dt - 3), -jnp.exp(a), jnp.zeros((1, heads, dim, state))

    def scan(chunk: int) -> Callable[..., jax.Array]:
        return lambda x, dt, b, c: ssd(x, dt, a, b, c, zeros, chunk)[0]

    return {
        CHUNKED: (scan(settings.chunk), x, dt, b, c),
        ALONE: (scan(1), x, dt, b, c),
        ATTENTION: (models.causal_attention, x, x, x),
    }


def _by_experts(settings: Settings, count: int) -> dict[str, tuple[Any, ...]]:
    rows, dim, width = settings.tokens * settings.choices, settings.model_dim, settings.expert_width
    x, kernel = _normal((rows, dim), (count, dim, width))
    group = jax.random.randint(jax.random.key(1), (rows,), 0, count)

    def ours(x: jax.Array, kernel: jax.Array) -> jax.Array:
        sent = blocks(group, count)
        return sent.taken(grouped(sent.put(x), kernel, sent.group_K))

    def ragged(x: jax.Array, kernel: jax.Array) -> jax.Array:
        order = jnp.argsort(group)
        sizes = jnp.zeros(count, jnp.int32).at[group].add(1)
        return jax.lax.ragged_dot(x[order], kernel, sizes)[jnp.argsort(order)]

    one = lambda x, kernel: x @ kernel  # noqa: E731 - as many products, all with one matrix
    return {GROUPED: (ours, x, kernel), RAGGED: (ragged, x, kernel), "one matrix": (one, x, kernel[0])}


def write_tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Markdown by name of the table."""
    of = lambda key, size: table([_line(row, size, key) for row in found[key]])  # noqa: E731
    return {
        "lengths": of("lengths", "tokens"),
        "experts": of("experts", "experts"),
        "machine": pages.sentence(found),
    }


def _line(row: Mapping[str, Any], size: str, key: str) -> dict[str, str]:
    reference = CHUNKED if key == "lengths" else GROUPED
    return {
        size: f"{row['size']:,}",
        "how": row["name"],
        "median, ms": f"{row['ms_median']:.2f}",
        f"times that of {reference}": f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
    }


if __name__ == "__main__":
    command.run(RESULTS, PAGES, lambda quick: measure(QUICK if quick else Settings()), write_tables)
