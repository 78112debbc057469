"""The accelerators that are known here: one table for estimates of time and for compilers.

Two sizes of memory stand beside each other. `memory_bytes` is the data sheet's, in powers of ten and with what driver
and compiler keep for themselves. `program_bytes` is what a program can have: of an H100 `device_memory_size` in the
description that the GPU compiler holds, of TPUs what their compiler names where a program is too large.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence

from freezejax.errors import UserError
from freezejax.paths import check_known

GIB = 2**30
_GPU_SHARE = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # the second is the first's old name


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator: what one device of it can do at most, and how it is compiled for."""

    name: str
    flops: Mapping[str, float]  # dense matmul FLOP/s by compute dtype; float32 as JAX multiplies it by default
    memory_bytes: float  # HBM by the data sheet
    memory_rate: float  # of HBM, bytes/s
    link_rate: float  # to the devices beside it, bytes/s that it sends
    source: str  # of the figures above
    platform: str  # cuda or tpu
    program_bytes: int = 0  # bytes of a device that a program can have; 0 = not known, nothing compiles for it here
    axes: int = 0  # numbers in the text of a topology
    shape: str = ""  # what they mean
    packages: Sequence[str] = ()  # modules that compile for it

    @property
    def limit(self) -> int:
        """Bytes per device that a program may take.

        Of a GPU JAX takes 0.75, or `$XLA_CLIENT_MEM_FRACTION` (a UserError if that is not a number in (0, 1]); the rest
        is for NCCL, cuDNN and the driver.
        """
        if self.platform != "cuda":
            return self.program_bytes
        name = next((name for name in _GPU_SHARE if name in os.environ), _GPU_SHARE[0])
        text = os.environ.get(name, "0.75")
        share = float(text) if re.fullmatch(r"\d*\.?\d+", text) else 0.0
        if not 0 < share <= 1:
            raise UserError(f"${name}={text!r}: expected a number in (0, 1]")
        return int(share * self.program_bytes)


_NVIDIA = "NVIDIA {} Tensor Core GPU data sheet, SXM, without sparsity; float32 as TF32; NVLink in one direction"
_GOOGLE = "https://cloud.google.com/tpu/docs/{}; float32 in one bfloat16 pass; ICI in one direction"
_HOPPER = {"bfloat16": 989.4e12, "float32": 494.7e12}
_CUDA = ("slices x hosts x GPUs, as h100:1x1x8", ("jax_plugins.xla_cuda12", "nvidia.cuda_nvcc"))


def _tpu(name: str, flops: float, memory: float, rate: float, link: float, usable: float, topology: str) -> Chip:
    both = dict.fromkeys(_HOPPER, flops)
    source, axes = _GOOGLE.format(name), topology.count("x") + 1
    shape = f"{' x '.join(['chips'] * axes)}, as {name}:{topology}"
    return Chip(name, both, memory, rate, link, source, "tpu", int(usable * GIB), axes, shape, ("libtpu",))


HARDWARE: Mapping[str, Chip] = {
    "h100": Chip("h100", _HOPPER, 80e9, 3.35e12, 450e9, _NVIDIA.format("H100"), "cuda", 84_942_979_072, 3, *_CUDA),
    "h200": Chip("h200", _HOPPER, 141e9, 4.8e12, 450e9, _NVIDIA.format("H200"), "cuda"),
    "v5e": _tpu("v5e", 197e12, 16e9, 819e9, 200e9, 15.75, "2x4"),
    "v5p": _tpu("v5p", 459e12, 95e9, 2765e9, 600e9, 95.73, "4x4x4"),
}
CHIPS = {name: chip for name, chip in HARDWARE.items() if chip.program_bytes}  # those that programs can be compiled for


def hardware_named(name: str) -> Chip:
    """The accelerator of a name; an unknown one is told with the nearest.

    >>> hardware_named("h10")
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: there is no hardware 'h10'; nearest: h100, h200
    """
    check_known(name, HARDWARE, f"there is no hardware {name!r}", count=2)
    return HARDWARE[name]
