"""The matmuls of a step one by one, ours and PyTorch's: forward, and the gradients of input (dX) and weight (dW)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.running_step import Sizes
from benchmarks.tables import table
from benchmarks.timing import compare, interleave
from freezejax.errors import UserError
from freezejax.paths import leaf_paths
from freezejax.weights.linear import matmul

Run = Callable[[int], list[float]]  # runs so many times; some values of the last result

PARTS = ("forward", "dX", "dW")
CHECKED = 4  # values of a result, from its diagonal: transposed or not, it is the same
_TOLERANCE = 1e-4  # of the largest of them
_SAMPLE_FLOP, _MOST_REPEATS = 10e9, 100  # some 40 ms, so that PyTorch's process is asked seldom


@dataclasses.dataclass(frozen=True)
class Product:
    """One matmul of the step: `x [tokens, inner] @ weight [inner, outer]`, or one of its two gradients."""

    weight: str  # the layers that have a weight of this shape
    tokens: int
    inner: int
    outer: int
    part: str  # one of PARTS
    transposed: bool = False  # the weight is stored as [outer, inner]

    @property
    def name(self) -> str:
        """Its name among PyTorch's programs."""
        return f"{self.part} of {self.weight}"

    @property
    def flop(self) -> int:
        """The same for all three parts."""
        return 2 * self.tokens * self.inner * self.outer


def products(sizes: Sizes) -> list[Product]:
    """Every part of every distinct kernel shape of the step, and of the head, whose weight is the embedding.

    >>> [product.name for product in products(Sizes())][-3:]
    ['forward of head', 'dX of head', 'dW of head']
    """
    params = sizes.model().abstract_params()
    weights: dict[tuple[int, int], list[str]] = {}
    for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        if path.endswith("/kernel") and (name := path.split("/")[-2]) not in weights.setdefault(leaf.shape, []):
            weights[leaf.shape].append(name)
    kinds = [(", ".join(names), *shape, False) for shape, names in weights.items()]
    kinds.append(("head", sizes.model_dim, sizes.vocab_size, True))
    tokens = sizes.batch_size * sizes.seq_len
    return [Product(name, tokens, i, o, part, transposed) for name, i, o, transposed in kinds for part in PARTS]


def operands(product: Product) -> dict[str, np.ndarray]:
    """`x` [tokens, inner], `weight` [outer, inner] as PyTorch has it, and `grad` [tokens, outer]; float32."""
    shapes = {
        "x": (product.tokens, product.inner),
        "weight": (product.outer, product.inner),
        "grad": (product.tokens, product.outer),
    }
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write_orders(folder: Path, wanted: Sequence[Product]) -> dict[str, dict[str, Any]]:
    """Writes the operands for `torch_step.py`; what it is to do, by the name of the product."""
    arrays = {f"{p.weight}/{name}": array for p in wanted for name, array in operands(p).items()}
    np.savez(folder / "operands.npz", **arrays)  # type: ignore[arg-type]
    return {p.name: {"part": p.part, "operands": p.weight, "checked": CHECKED} for p in wanted}


def compile_product(product: Product) -> tuple[Any, tuple[jax.Array, ...]]:
    """The compiled program and its arguments. What a step runs: `matmul` and its own backward, nothing else."""
    stored = lambda weight: weight.T if product.transposed else weight  # noqa: E731 - the tied head's way
    forward = lambda x, weight: matmul(x, stored(weight))  # noqa: E731
    functions: dict[str, Callable[..., Any]] = {
        "forward": lambda x, weight, grad: forward(x, weight),
        "dX": lambda x, weight, grad: jax.vjp(lambda x: forward(x, weight), x)[1](grad)[0],
        "dW": lambda x, weight, grad: jax.vjp(lambda weight: forward(x, weight), weight)[1](grad)[0],
    }
    arrays = operands(product)
    if not product.transposed:
        arrays["weight"] = np.ascontiguousarray(arrays["weight"].T)
    arguments = tuple(jax.numpy.asarray(array) for array in arrays.values())
    return jax.jit(functions[product.part]).lower(*arguments).compile(), arguments


def ours(product: Product) -> Run:
    """Our program, as PyTorch's process runs its own."""
    program, arguments = compile_product(product)

    def run(steps: int) -> list[float]:
        for _ in range(steps):
            result = program(*arguments)
        values: list[float] = np.asarray(result).diagonal()[:CHECKED].tolist()
        return values

    return run


def time_products(measured: Sequence[Product], torch: Mapping[str, Run], rounds: int) -> list[dict[str, Any]]:
    """GFLOP/s of every product on both sides, and the ratio of its times to PyTorch's.

    Args:
      measured: the products.
      torch: PyTorch's programs by the name of the product, in a process of their own.
      rounds: samples of each; a round times every product on both sides.

    Raises:
      UserError: the two sides do not compute the same.
    """
    calls: dict[Any, Callable[[], Any]] = {}
    for product in measured:
        sides = {"freezejax": ours(product), "torch": torch[product.name]}
        check_same(product, {side: run(1) for side, run in sides.items()})
        calls |= {(product, side): partial(run, _repeats(product)) for side, run in sides.items()}
    seconds = interleave(calls, rounds, sample_seconds=0)
    rows = []
    for product in measured:
        mine = {side: seconds[product, side] / _repeats(product) for side in ("freezejax", "torch")}  # type: ignore[index]
        for row in compare(mine, "torch"):
            rate = product.flop / row["ms_median"] / 1e6
            rows.append({**dataclasses.asdict(product), **row, "gflop_per_s": rate})
    return rows


def _repeats(product: Product) -> int:
    return min(_MOST_REPEATS, max(1, round(_SAMPLE_FLOP / product.flop)))


def check_same(product: Product, values: Mapping[str, Sequence[float]]) -> None:
    """Compares the values of both sides.

    Raises:
      UserError: they differ by more than 1e-4 of the largest.
    """
    mine, theirs = np.array(values["freezejax"]), np.array(values["torch"])
    difference = float(np.abs(mine - theirs).max() / np.abs(mine).max())
    if not difference <= _TOLERANCE:
        raise UserError(f"{product.name}: PyTorch's result differs from ours by {difference:.1e}, not {_TOLERANCE:.0e}")


def write_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per product: our GFLOP/s, PyTorch's, and the ratio of the times."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        shape = f"[{row['tokens']:,}, {row['inner']}] x [{row['inner']}, {row['outer']}]"
        line = lines.setdefault(
            (row["weight"], row["part"]), {"weight": row["weight"], "shape": shape, "part": row["part"]}
        )
        line[f"{row['name']}, GFLOP/s"] = f"{row['gflop_per_s']:.0f}"
        if row["name"] == "freezejax":
            ratio = f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"
        else:
            line["time, times torch"] = ratio
    return table(list(lines.values()))
