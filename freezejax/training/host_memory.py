"""Memory of the CPU backend between two steps: kept by the process, not handed back to the kernel."""

import ctypes
import importlib.util
import sys
from pathlib import Path

import jax

# Parameter of mallopt(3), by the name that glibc's environment variables have after MALLOC_: (number, value).
KEEP = {"ARENA_MAX": (-8, 1), "MMAP_MAX_": (-4, 0), "TRIM_THRESHOLD_": (-1, 2**31 - 1), "TOP_PAD_": (-2, 2**26)}
_ACCELERATORS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "jax_rocm7_plugin", "libtpu")
_DEVICE_FILES = ("nvidia*", "dxg", "kfd", "accel*", "vfio/*")  # of GPUs (dxg: in WSL 2) and TPUs, under /dev


def keep_freed_memory() -> bool:
    """Lets the C library keep what is freed, so that the next step finds its pages where they were.

    XLA's CPU backend allocates the temporaries of a step as one block and frees it after the step. glibc gets a block
    of that size from the kernel and gives it back each time, and each step faults its pages in again, zeroed: a third
    of the CPU time of a small model's step. The price is that the process keeps its largest size.

    It must come before jax starts its backend, whose threads get their arenas then. Where jax may use an accelerator
    nothing is changed, nor where the C library is another one.

    Returns:
      Whether it was done.

    >>> keep_freed_memory() in (True, False)
    True
    """
    if sys.platform != "linux" or _may_use_an_accelerator():
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(number, value) for number, value in KEEP.values())


def _may_use_an_accelerator() -> bool:
    if jax.config.jax_platforms == "cpu" or not any(map(importlib.util.find_spec, _ACCELERATORS)):
        return False
    return any(any(Path("/dev").glob(pattern)) for pattern in _DEVICE_FILES)  # the compilers alone are no device
