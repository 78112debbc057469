"""Time of one layer on a frozen weight, forward and backward to its input: the weight stored, or drawn."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from benchmarks.timing import compare, interleave
from freezejax import RandomMap
from freezejax.weights import MapWeight, draw_maps
from freezejax.weights.linear import linear

Shape = tuple[int, int]


def time_layer(
    shape: Shape, distributions: Sequence[str], tokens: int, dtype: str, rounds: int
) -> list[dict[str, Any]]:
    """The layer on each distribution, drawn in both passes, against the layer on a stored weight."""
    calls = {"stored": layer(_stored(shape), shape, tokens, dtype)}
    calls |= {name: layer(_map(shape, name), shape, tokens, dtype) for name in distributions}
    return compare(interleave(calls, rounds), "stored")


def time_draw(shape: Shape, distributions: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Drawing the map alone, against drawing signs; nanoseconds per weight, too."""

    def draw(weight: MapWeight) -> Callable[[], Any]:
        compiled = jax.jit(draw_maps).lower(weight).compile()
        return lambda: jax.block_until_ready(compiled(weight))

    calls = {name: draw(_map(shape, name)) for name in distributions}
    rows = compare(interleave(calls, rounds), "rademacher")
    return [{**row, "ns_per_weight": 1e6 * row["ms_median"] / (shape[0] * shape[1])} for row in rows]


def time_tokens(shape: Shape, distributions: Sequence[str], counts: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """The layer against the number of tokens: drawn once per step ("per_step") or in each pass ("per_layer")."""
    rows = []
    for tokens in counts:
        calls = {"stored": layer(_stored(shape), shape, tokens, "float32")}
        for name in distributions:
            weight = _map(shape, name)
            calls[f"{name}, per_step"] = layer(weight, shape, tokens, "float32", once=True)
            calls[f"{name}, per_layer"] = layer(weight, shape, tokens, "float32")
        rows += [{"tokens": tokens, **row} for row in compare(interleave(calls, rounds), "stored")]
    return rows


def break_even(rows: Sequence[dict[str, Any]], limit: float) -> dict[str, int | None]:
    """Per form the least measured number of tokens from which on it takes at most `limit` times the stored weight.

    >>> break_even([{"name": "a", "tokens": 64, "ratio": 1.2}, {"name": "a", "tokens": 256, "ratio": 1.0}], 1.05)
    {'a': 256}
    """
    found = {}
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        too_few = max((row["tokens"] for row in mine if row["ratio"] > limit), default=0)
        found[name] = min((row["tokens"] for row in mine if row["tokens"] > too_few), default=None)
    return found


def layer(weight: Any, shape: Shape, tokens: int, dtype: str, *, once: bool = False) -> Callable[[], Any]:
    """The compiled layer: output and gradient of the input. The weight is an argument and has no gradient.

    With `once`, a map is drawn at the start and both passes use that.
    """
    x, grad = (
        jax.random.normal(jax.random.key(seed), (tokens, width)).astype(dtype) for seed, width in enumerate(shape)
    )

    def both_passes(weight: Any, x: jax.Array, grad: jax.Array) -> Any:
        weight = draw_maps(weight) if once else weight
        y, backward = jax.vjp(lambda x: linear(x, weight), x)
        return y, backward(grad)

    compiled = jax.jit(both_passes).lower(weight, x, grad).compile()
    return lambda: jax.block_until_ready(compiled(weight, x, grad))


def _stored(shape: Shape) -> jax.Array:
    return _map(shape, "normal").materialize()


def _map(shape: Shape, distribution: str) -> MapWeight:
    return MapWeight.create(RandomMap(shape, distribution, name="up/kernel"), jax.random.key(0))
