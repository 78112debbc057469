"""Memory of the CPU backend between two steps: kept by the process, not handed back to the kernel."""

import ctypes
import importlib.util
import sys

import jax

# Of <malloc.h>; the names are those of mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_KEEP = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26))
_ACCELERATORS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "jax_rocm7_plugin", "libtpu")


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
    cpu_alone = jax.config.jax_platforms == "cpu" or not any(map(importlib.util.find_spec, _ACCELERATORS))
    if not (sys.platform == "linux" and cpu_alone):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(option, value) for option, value in _KEEP)
