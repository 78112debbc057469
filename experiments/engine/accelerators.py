"""What a command runs on: the devices jax can find, found out before it starts a backend, and the CPU's memory."""

import ctypes
import importlib.util
import sys
from pathlib import Path
from typing import TextIO

import jax
from absl import flags

from freezejax.errors import UserError
from freezejax.training import processes

flags.disclaim_key_flags()  # of the command, see cli.py
_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "jax_rocm7_plugin", "libtpu")
_DEVICE_FILES = ("nvidia*", "dxg", "kfd", "accel*", "vfio/*")  # of GPUs (dxg: in WSL 2) and TPUs, under /dev
# Parameter of mallopt(3), by the name that glibc's environment variables have after MALLOC_: (number, value).
KEEP = {"MMAP_MAX_": (-4, 0), "TRIM_THRESHOLD_": (-1, 2**31 - 1), "TOP_PAD_": (-2, 2**26)}
ONE_HEAP = {"ARENA_MAX": (-8, 1)}


def plugin_installed() -> bool:
    """Whether a package is installed through which jax drives a GPU or a TPU, or compiles for one."""
    return any(map(importlib.util.find_spec, _PLUGINS))


def device_present() -> bool:
    """Whether there may be a GPU or a TPU, by the names of files under /dev; True where that cannot be told."""
    return sys.platform != "linux" or any(any(Path("/dev").glob(name)) for name in _DEVICE_FILES)


def choose_platform() -> None:
    """Keeps jax on the CPU where plugins of accelerators are installed and no device is: it would say so at length."""
    if not jax.config.jax_platforms and plugin_installed() and not device_present():
        jax.config.update("jax_platforms", "cpu")


def keep_freed_memory(one_heap: bool = True) -> bool:
    """Lets the C library keep what is freed, so that the next step finds its pages where they were.

    XLA's CPU backend allocates the temporaries of a step as one block and frees it after the step. glibc gets a block
    of that size from the kernel and gives it back each time, and each step faults its pages in again, zeroed: a third
    of the CPU time of a small model's step. The price is that the process keeps its largest size, until
    `give_freed_memory_back`.

    From 64 MiB on a block outlives a step only in the `one_heap` of all threads. That costs where blocks are smaller:
    XLA compiles on all cores, and they wait for each other at the one heap, a third of the time of compilation.

    It must come before jax starts its backend, whose threads get their arenas then. Where jax may use an accelerator
    nothing is changed, nor where the C library is another one. Returns whether it was done.
    """
    cpu_alone = jax.config.jax_platforms == "cpu" or not (plugin_installed() and device_present())
    if not (sys.platform == "linux" and cpu_alone):
        return False
    library = ctypes.CDLL(None)
    is_glibc = hasattr(library, "gnu_get_libc_version")
    return is_glibc and all(library.mallopt(*option) for option in (KEEP | (ONE_HEAP if one_heap else {})).values())


def give_freed_memory_back() -> None:
    """Returns to the system what the C library kept: between two runs, or a study of a hundred grows to gigabytes."""
    library = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def define_flags() -> None:
    """Defines `--require_accelerator`."""
    flags.DEFINE_bool("require_accelerator", False, "End at once where jax finds no GPU and no TPU.")


def announce(file: TextIO | None = None) -> None:
    """Prints the devices of the run as one line, in process 0; refuses the CPU where `--require_accelerator` is set."""
    devices = jax.devices()
    line, is_cpu = describe(devices), devices[0].platform == "cpu"
    if is_cpu and plugin_installed():
        line += "; a package for GPUs or TPUs is installed, but jax uses no such device"
    if is_cpu and flags.FLAGS.require_accelerator:
        raise UserError(f"--require_accelerator: there is only {line}")
    if processes.is_main():
        print(line, file=file, flush=True)


def describe(devices: list[jax.Device]) -> str:
    """Their number, kind and platform: "1 x cpu (platform cpu)"."""
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    shared = f", in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{len(devices)} x {kinds} (platform {devices[0].platform}{shared})"
