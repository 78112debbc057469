"""Memory of the CPU backend between two steps: kept by the process, not handed back to the kernel."""

import ctypes
import sys

import jax

from experiments.engine.accelerators import device_present, plugin_installed

# Parameter of mallopt(3), by the name that glibc's environment variables have after MALLOC_: (number, value).
KEEP = {"ARENA_MAX": (-8, 1), "MMAP_MAX_": (-4, 0), "TRIM_THRESHOLD_": (-1, 2**31 - 1), "TOP_PAD_": (-2, 2**26)}


def keep_freed_memory() -> bool:
    """Lets the C library keep what is freed, so that the next step finds its pages where they were.

    XLA's CPU backend allocates the temporaries of a step as one block and frees it after the step. glibc gets a block
    of that size from the kernel and gives it back each time, and each step faults its pages in again, zeroed: a third
    of the CPU time of a small model's step. The price is that the process keeps its largest size.

    It must come before jax starts its backend, whose threads get their arenas then. Where jax may use an accelerator
    nothing is changed, nor where the C library is another one. Returns whether it was done.
    """
    cpu_alone = jax.config.jax_platforms == "cpu" or not (plugin_installed() and device_present())
    if not (sys.platform == "linux" and cpu_alone):
        return False
    library = ctypes.CDLL(None)
    is_glibc = hasattr(library, "gnu_get_libc_version")
    return is_glibc and all(library.mallopt(number, value) for number, value in KEEP.values())
