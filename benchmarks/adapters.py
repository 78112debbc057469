"""Adapters over several kernels of one input, such as q, k and v: what it saves to compute them together.

    python -m benchmarks.adapters --json=benchmarks/results/adapters.json
    python -m benchmarks.adapters --write_docs

The first measures and prints its table: about a minute on 2 quiet CPU cores; with --quick a toy size. The second writes
the committed JSON's table into the page that quotes it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import command, pages
from benchmarks.tables import table
from benchmarks.timing import compare, interleave
from freezejax.weights import LoraWeight
from freezejax.weights.adapter import Adapter
from freezejax.weights.linear import linear

RESULTS = pages.RESULTS / "adapters.json"
PAGES = (pages.PERFORMANCE,)
ALONE, MERGED, BESIDE = "no adapters", "merged", "beside"
Loras = Sequence[LoraWeight]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How large and how often; the defaults are those of benchmarks/freezing.py."""

    rows: int = 8 * 256  # B * T
    width: int = 192
    rank: int = 16
    kernels: Mapping[str, tuple[int, int]] = dataclasses.field(  # name -> how many of one input, outputs of each
        default_factory=lambda: {"q, k, v": (3, 192), "gate, up": (2, 384)}
    )
    rounds: int = 41


QUICK = Settings(rows=32, width=16, rank=2, kernels={"q, k, v": (3, 16)}, rounds=3)


def measure(settings: Settings) -> dict[str, Any]:
    """Everything, as it stands in the JSON."""
    environment = pages.environment()
    groups = {name: _group(settings, *shape) for name, shape in settings.kernels.items()}
    return {"settings": dataclasses.asdict(settings), **environment, "groups": groups}


def _group(settings: Settings, count: int, width_out: int) -> list[dict[str, Any]]:
    x, loras = example(settings, count, width_out)
    programs: dict[str, Any] = {
        name: jax.jit(gradients(form)).lower(x, loras).compile() for name, form in FORMS.items()
    }
    calls = {
        name: lambda program=program: jax.block_until_ready(program(x, loras)) for name, program in programs.items()
    }
    flops = {name: program.cost_analysis()["flops"] for name, program in programs.items()}
    rows = compare(interleave(calls, settings.rounds), ALONE)
    return [{**row, "flop_ratio": flops[row["name"]] / flops[ALONE]} for row in rows]


def example(settings: Settings, count: int, width_out: int) -> tuple[jax.Array, list[LoraWeight]]:
    """An input [rows, in] and `count` kernels [in, out] of it with their adapters, whose B are no longer zero."""
    keys = iter(jax.random.split(jax.random.key(0), 1 + 3 * count))
    draw = lambda *shape: jax.random.normal(next(keys), shape) / shape[0] ** 0.5  # noqa: E731
    width, rank = settings.width, settings.rank
    loras = [LoraWeight(draw(width, width_out), draw(width, rank), draw(rank, width_out), rank) for _ in range(count)]
    return draw(settings.rows, width), loras


def gradients(form: Callable[[jax.Array, Loras], Sequence[jax.Array]]) -> Callable[..., Any]:
    """A function (x, adapters) -> gradients of the sum of squared outputs: of x, every A and every B; bases stand."""

    def squares(moving: Any, bases: Sequence[jax.Array]) -> jax.Array:
        x, low = moving
        outputs = form(x, [dataclasses.replace(lora, base=base) for lora, base in zip(low, bases, strict=True)])
        return sum((jnp.square(output).sum() for output in outputs), jnp.zeros([]))

    def run(x: jax.Array, loras: Loras) -> Any:
        low = [dataclasses.replace(lora, base=None) for lora in loras]
        return jax.grad(squares)((x, low), [lora.base for lora in loras])

    return run


def _alone(x: jax.Array, loras: Loras) -> list[jax.Array]:
    return [linear(x, lora.base) for lora in loras]


def _merged(x: jax.Array, loras: Loras) -> list[jax.Array]:
    return [lora(x) for lora in loras]


def _beside(x: jax.Array, loras: Loras) -> list[jax.Array]:
    return [Adapter.__call__(lora, x) for lora in loras]


def _one_a_product(x: jax.Array, loras: Loras) -> list[jax.Array]:
    lows = jnp.split(linear(x, _scaled_a(loras)), len(loras), axis=1)
    return [linear(x, lora.base) + linear(low, lora.b) for lora, low in zip(loras, lows, strict=True)]


def _one_down_product(x: jax.Array, loras: Loras) -> list[jax.Array]:
    downs = linear(linear(x, _scaled_a(loras)), jax.scipy.linalg.block_diag(*(lora.b for lora in loras)))
    added = jnp.split(downs, len(loras), axis=1)
    return [linear(x, lora.base) + down for lora, down in zip(loras, added, strict=True)]


def _scaled_a(loras: Loras) -> jax.Array:
    return jnp.concatenate([lora.a * lora.scale for lora in loras], axis=1)


def _merged_together(x: jax.Array, loras: Loras) -> tuple[jax.Array, ...]:
    return merged_products(x, tuple((lora.base, lora.a, lora.b) for lora in loras), loras[0].scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def merged_products(x_NxI: jax.Array, weights: Any, scale: float) -> tuple[jax.Array, ...]:
    """`merged_product` of freezejax.weights.lora for kernels of one input: its backward pass reads `x` for all at once.

    `weights` are (base [in, out], A [in, rank], B [rank, out]), all of one rank.
    """
    return tuple(x_NxI @ jax.lax.optimization_barrier(base + scale * a @ b) for base, a, b in weights)


def _products_backward(scale: float, saved: Any, grads: Any) -> tuple[Any, ...]:
    x_NxI, weights = saved
    a_IxKR = jnp.concatenate([a for _, a, _ in weights], axis=1)
    highs = [grad @ b.T * scale for grad, (*_, b) in zip(grads, weights, strict=True)]
    low_NxKR, high_NxKR = jax.lax.optimization_barrier((x_NxI @ a_IxKR * scale, jnp.concatenate(highs, axis=1)))
    a_grad_KRxI = jax.lax.optimization_barrier(high_NxKR.T @ x_NxI)
    matrices = [jax.lax.optimization_barrier(base + scale * a @ b) for base, a, b in weights]
    x_grad = sum((grad @ matrix.T for grad, matrix in zip(grads, matrices, strict=True)), jnp.zeros_like(x_NxI))
    lows, a_grads = (jnp.split(joint, len(weights), axis) for joint, axis in ((low_NxKR, 1), (a_grad_KRxI, 0)))
    changes = zip(weights, a_grads, lows, grads, strict=True)
    return x_grad, tuple((jnp.zeros_like(base), a.T, low.T @ grad) for (base, *_), a, low, grad in changes)


merged_products.defvjp(lambda *args: (merged_products(*args), args[:2]), _products_backward)

FORMS: dict[str, Callable[[jax.Array, Loras], Sequence[jax.Array]]] = {
    ALONE: _alone,
    f"{MERGED}, each by itself": _merged,
    f"{MERGED}, thin products of all in one": _merged_together,
    f"{BESIDE} their bases, each by itself": _beside,
    f"{BESIDE} them, one product with all A": _one_a_product,
    f"{BESIDE} them, one product with all A and one with all B": _one_down_product,
}


def write_tables(found: Mapping[str, Any]) -> dict[str, str]:
    """The tables by name, as they stand in the pages."""
    lines: dict[str, dict[str, str]] = {name: {"form": name} for name in FORMS}
    for group, rows in found["groups"].items():
        for row in rows:
            ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
            told = {"ms": f"{row['ms_median']:.2f}", "FLOPs, ratio": f"{row['flop_ratio']:.2f}", "time, ratio": ratio}
            lines[row["name"]] |= {f"{group}: {heading}": value for heading, value in told.items()}
    return {"forms": table(list(lines.values())), "machine": pages.sentence(found)}


if __name__ == "__main__":
    command.run(RESULTS, PAGES, lambda quick: measure(QUICK if quick else Settings()), write_tables)
