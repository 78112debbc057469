"""Memory of unrolled layers on frozen weights: stored, drawn once per step, drawn in each pass, drawn naively."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.training_step import abstract_step
from freezejax import RandomMap
from freezejax.paths import named_key
from freezejax.weights import MapWeight, draw_maps
from freezejax.weights.linear import linear

FORMS = ("once", "per_step", "per_layer", "naive")
JUDGED = "layers with gelu"
_CHAINS: dict[str, Callable[[jax.Array], jax.Array]] = {JUDGED: jax.nn.gelu, "layers without": lambda x: x}
_MODELS = {
    "model, gate and up": r"blocks/\d+/mlp/(gate|up)/kernel",
    "model, all kernels": r"blocks/\d+/(attn|mlp)/\w+/kernel",
}


def measure(shape: tuple[int, int], tokens: int, layers: int, *, models: bool = True) -> list[dict[str, Any]]:
    """Bytes of arguments and temporaries of each program in each form, from their compiled forms; nothing runs.

    The programs are the gradient through unrolled layers of alternating shapes, with a gelu after each and without,
    and, with `models`, a training step of a GEGLU model of `layers` blocks on a quarter of the tokens.

    `saved_share` compares arguments and temporaries together with those of "once", in parts of the maps' bytes:
    a stored map is an argument, a drawn one a temporary, and only the sum of both is the same thing in every form.
    `saved_share_of_temporaries` compares temporaries alone with those of "per_step", which holds maps as temporaries.
    """
    shapes = [shape if i % 2 == 0 else shape[::-1] for i in range(layers)]
    rows = []
    for name, activation in _CHAINS.items():
        rows += _compare(name, lambda form, f=activation: _chain(form, shapes, tokens, f), FORMS)  # type: ignore[misc]
    for name, pattern in _MODELS.items() if models else ():
        rows += _compare(name, lambda form, p=pattern: _model(form, p, layers, tokens // 4), FORMS[:3])  # type: ignore[misc]
    return rows


def _compare(program: str, compiled: Callable[[str], tuple[Any, int]], forms: Sequence[str]) -> list[dict[str, Any]]:
    rows = {}
    for form in forms:
        executable, map_weights = compiled(form)
        found = executable.memory_analysis()
        rows[form] = {
            "program": program,
            "form": form,
            "maps_bytes": 4 * map_weights,
            "argument_bytes": found.argument_size_in_bytes,
            "temporary_bytes": found.temp_size_in_bytes,
        }
    for row in rows.values():
        stored, step = rows["once"], rows["per_step"]
        saved = _total(stored) - _total(row)
        row["saved_share"] = saved / row["maps_bytes"]
        row["saved_share_of_temporaries"] = (step["temporary_bytes"] - row["temporary_bytes"]) / row["maps_bytes"]
    return list(rows.values())


def _total(row: dict[str, Any]) -> int:
    return row["argument_bytes"] + row["temporary_bytes"]


def _model(form: str, pattern: str, layers: int, tokens: int) -> tuple[Any, int]:
    seq_len = min(tokens, 256)
    step, arguments, map_weights = abstract_step(
        pattern, draw=form, layers=layers, batch_size=tokens // seq_len, seq_len=seq_len
    )
    return jax.jit(step, donate_argnums=0).lower(*arguments).compile(), map_weights


def _chain(
    form: str, shapes: Sequence[tuple[int, int]], tokens: int, activation: Callable[[jax.Array], jax.Array]
) -> tuple[Any, int]:
    """The compiled gradient of half the squared norm of the chain's output with respect to its input."""
    maps = [RandomMap(shape, "normal", name=f"layers/{i}/kernel") for i, shape in enumerate(shapes)]
    base_key = jax.random.key(0)
    drawn = [MapWeight.create(random_map, base_key) for random_map in maps]
    argument, use = {
        "once": (jax.eval_shape(draw_maps, drawn), lambda weights: weights),
        "per_step": (drawn, draw_maps),
        "per_layer": (drawn, lambda weights: weights),
        "naive": (base_key, lambda key: [_naive(random_map, key) for random_map in maps]),
    }[form]

    def gradient(argument: Any, x: jax.Array) -> Any:
        def output(x: jax.Array) -> jax.Array:
            for weight in use(argument):
                x = activation(linear(x, weight))
            return x

        y, backward = jax.vjp(output, x)
        return backward(y)

    x = jax.ShapeDtypeStruct((tokens, shapes[0][0]), jnp.float32)
    map_weights = sum(rows * columns for rows, columns in shapes)
    return jax.jit(gradient).lower(argument, x).compile(), map_weights


def _naive(random_map: RandomMap, key: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """What people write: the map inside the loss, under autodiff."""

    def product(x: jax.Array) -> jax.Array:
        drawn = jax.random.normal(named_key(key, random_map.name), random_map.shape)
        return x @ (drawn * jnp.float32(random_map.std))

    return product
