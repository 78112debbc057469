"""Whether jax can find an accelerator here, found out before it starts a backend."""

import importlib.util
import sys
from pathlib import Path

_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "jax_rocm7_plugin", "libtpu")
_DEVICE_FILES = ("nvidia*", "dxg", "kfd", "accel*", "vfio/*")  # of GPUs (dxg: in WSL 2) and TPUs, under /dev


def plugin_installed() -> bool:
    """Whether a package is installed through which jax drives a GPU or a TPU, or compiles for one.

    >>> plugin_installed() in (True, False)
    True
    """
    return any(map(importlib.util.find_spec, _PLUGINS))


def device_present() -> bool:
    """Whether there may be a GPU or a TPU; True where that cannot be told.

    >>> device_present() in (True, False)
    True
    """
    return sys.platform != "linux" or any(any(Path("/dev").glob(pattern)) for pattern in _DEVICE_FILES)
