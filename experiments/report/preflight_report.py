"""What preflight prints: a line per compiled program, a line per variant, and the same as JSON."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from freezejax.aot import GIB, CompiledProgram, Topology, sent_by_kind

_COLUMNS = ("all-gather", "reduce-scatter", "all-reduce")  # other kinds are summed up
_HEAD = "fits   GiB  compile s      GFLOP  gather MB  scatter MB  reduce MB  other MB   step ms  program"


class Use(NamedTuple):
    """A phase that runs a program.

    >>> str(Use("baseline", 0, 3000))
    'baseline, steps 0 to 3000'
    """

    variant: str
    start: int  # steps
    stop: int

    def __str__(self) -> str:
        """Variant and steps."""
        return f"{self.variant}, steps {self.start} to {self.stop}"


class Row(NamedTuple):
    """One compiled program and the phases that run it.

    >>> Row([Use("a", 0, 9)], CompiledProgram(1, 2, 0.5, (), None), 1e9, 0.002).names
    'a, steps 0 to 9'
    """

    uses: Sequence[Use]
    program: CompiledProgram
    flops: float  # one step, one device
    step_seconds: float  # estimate

    @property
    def names(self) -> str:
        """The first phase, and how many more there are."""
        return str(self.uses[0]) + (f" (and {len(self.uses) - 1} more)" if len(self.uses) > 1 else "")


def header(topology: Topology, mesh: Mesh, variants: int, phases: int, programs: int) -> str:
    """What is compiled for what, and the heads of the columns."""
    shape = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    return (
        f"{topology.name}: {mesh.size} x {topology.devices[0].device_kind} ({shape}), {topology.chip.limit / GIB:.1f} "
        f"GiB of each for the program\n{variants} variants, {phases} phases, {programs} distinct programs; figures are "
        f"of one device and step\n\n{_HEAD}"
    )


def line(row: Row) -> str:
    """One program: a line of the table."""
    program, sent = row.program, sent_by_kind(row.program.collectives)
    fits = "yes" if program.fits else "NO"
    columns = [sent.get(kind, 0) for kind in _COLUMNS]
    gather, scatter, reduce, other = (f"{size / 1e6:.1f}" for size in (*columns, sum(sent.values()) - sum(columns)))
    return (
        f"{fits:4} {program.peak / GIB:5.2f} {program.seconds:10.1f} {row.flops / 1e9:10.1f} {gather:>10} "
        f"{scatter:>11} {reduce:>10} {other:>9} {1e3 * row.step_seconds:9.2f}  {row.names}"
    )


class Cost(NamedTuple):
    """Time and money of the runs of one variant, by estimate.

    >>> Cost("baseline", 3, 60.0, 0.5).line
    'baseline: 3 x 1.0 minutes, 3 x $0.50'
    """

    variant: str
    runs: int
    seconds: float  # one run; evaluation, compilation and reading data come on top
    dollars: float | None  # one run; None without a price

    @property
    def line(self) -> str:
        """The variant in words."""
        price = "" if self.dollars is None else f", {self.runs} x ${self.dollars:.2f}"
        return f"{self.variant}: {self.runs} x {self.seconds / 60:.1f} minutes{price}"


def costs(rows: Sequence[Row], runs: Mapping[str, int], devices: int, price_per_hour: float | None) -> list[Cost]:
    """What every variant takes; `price_per_hour` is USD for one device.

    >>> costs([Row([Use("a", 0, 100)], CompiledProgram(1, 2, 0.5, (), None), 1e9, 0.36)], {"a": 1}, 8, 2.5)
    [Cost(variant='a', runs=1, seconds=36.0, dollars=0.2)]
    """
    seconds: dict[str, float] = collections.defaultdict(float)
    for row in rows:
        for use in row.uses:
            seconds[use.variant] += (use.stop - use.start) * row.step_seconds
    per_second = None if price_per_hour is None else price_per_hour * devices / 3600
    return [
        Cost(name, count, seconds[name], None if per_second is None else seconds[name] * per_second)
        for name, count in runs.items()
    ]


def ending(rows: Sequence[Row], found: Sequence[Cost], efficiency: float) -> str:
    """Time and money of every variant and of all, and the verdict."""
    minutes = sum(cost.runs * cost.seconds for cost in found) / 60
    dollars = [cost.runs * cost.dollars for cost in found if cost.dollars is not None]
    price = f", ${sum(dollars):,.2f}" if dollars else ""
    too_large = [row.names for row in rows if not row.program.fits]
    return "\n".join(
        [
            f"\nTraining at {efficiency:.0%} of peak; evaluation, compilation and reading data come on top:",
            *(f"  {cost.line}" for cost in found),
            f"  all: {minutes:,.1f} minutes{price}",
            f"Does not fit: {'; '.join(too_large)}" if too_large else "Everything fits.",
        ]
    )


def as_json(
    rows: Sequence[Row], found: Sequence[Cost], topology: Topology, mesh: Mesh, efficiency: float
) -> dict[str, Any]:
    """All of it, with every collective."""
    return {
        "topology": topology.name,
        "mesh": dict(mesh.shape),
        "limit_bytes": topology.chip.limit,
        "efficiency": efficiency,
        "programs": [
            {
                "phases": [use._asdict() for use in row.uses],
                "fits": row.program.fits,
                "peak_bytes": row.program.peak,
                "compile_seconds": row.program.seconds,
                "flops": row.flops,
                "compiled_flops": row.program.flops,
                "step_seconds": row.step_seconds,
                "sent_bytes": sent_by_kind(row.program.collectives),
                "collectives": [collective._asdict() for collective in row.program.collectives],
            }
            for row in rows
        ],
        "variants": [cost._asdict() for cost in found],
        "fits": all(row.program.fits for row in rows),
    }
