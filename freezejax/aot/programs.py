"""Compiles a lowered step for devices that are not attached, and says what came of it."""

import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from freezejax.aot.hlo import Collective, collectives
from freezejax.aot.topologies import Topology

# Which kernel of a matmul is the fastest is decided by timing them, which nothing here can; calls of cuBLAS, chosen
# without that, compile in half of the time, and what the devices exchange is the same. The library's sort asks a device
# how much room it needs, and there is none.
_OPTIONS: dict[str, dict[str, Any]] = {
    "cuda": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0, "xla_gpu_enable_cub_radix_sort": False},
    "tpu": {},
}
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


class CompiledProgram(NamedTuple):
    """What the compiler made of one program; bytes and FLOPs are of one device and step.

    >>> CompiledProgram(3, 2, 0.5, (), None).fits
    False
    """

    peak: int  # bytes it needs at once: arguments, results and temporaries
    limit: int  # bytes it may take
    seconds: float  # of compilation
    collectives: Sequence[Collective]  # none where the compiler gave up
    flops: float | None  # None where the compiler does not count them

    @property
    def fits(self) -> bool:
        """Whether the memory of the device is enough."""
        return self.peak <= self.limit


def compile_for(lowered: jax.stages.Lowered, topology: Topology) -> CompiledProgram:
    """Compiles a program lowered on a mesh of the topology's devices.

    Too large a program is no error: the GPU compiler does not care, the TPU compiler gives up and says what it needs.
    """
    limit = topology.chip.limit
    start = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=_OPTIONS[topology.chip.platform])
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return CompiledProgram(max(needed_bytes(str(error)), limit + 1), limit, time.perf_counter() - start, (), None)
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    costs = compiled.cost_analysis() or {}
    found = tuple(collectives(compiled.as_text() or ""))
    return CompiledProgram(memory.peak_memory_in_bytes, limit, seconds, found, costs.get("flops"))


def needed_bytes(message: str) -> int:
    """Bytes that the TPU compiler says a program needs; 0 if it does not say so.

    >>> needed_bytes("the total memory required for HLO temporaries (1.5G) exceeds available HBM (15.75G)")
    1610612736
    """
    size = r"([\d.]+)([KMGT]?)B?"
    match = re.search(rf"{size}\W+exceeds available", message) or re.search(rf"Used {size} of", message)
    return 0 if match is None else round(float(match[1]) * 2 ** _UNITS[match[2]])
