"""Which devices a command runs on: what jax can find, found out before it starts a backend, and what it then took."""

import importlib.util
import sys
from pathlib import Path
from typing import TextIO

import jax
from absl import flags

from freezejax.errors import UserError
from freezejax.training import processes

_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "jax_rocm7_plugin", "libtpu")
_DEVICE_FILES = ("nvidia*", "dxg", "kfd", "accel*", "vfio/*")  # of GPUs (dxg: in WSL 2) and TPUs, under /dev


def plugin_installed(*packages: str) -> bool:
    """Whether a package is installed through which jax drives a GPU or a TPU, or compiles for one.

    >>> plugin_installed("json"), plugin_installed("no_such_package")
    (True, False)
    """
    return any(map(importlib.util.find_spec, packages or _PLUGINS))


def device_present(*files: str) -> bool:
    """Whether there may be a GPU or a TPU, by the names of files under /dev; True where that cannot be told.

    >>> device_present("nul*"), device_present("no such device") and sys.platform == "linux"
    (True, False)
    """
    return sys.platform != "linux" or any(any(Path("/dev").glob(name)) for name in files or _DEVICE_FILES)


def choose_platform() -> None:
    """Keeps jax on the CPU where plugins of accelerators are installed and no device is: it would say so at length."""
    if not jax.config.jax_platforms and plugin_installed() and not device_present():
        jax.config.update("jax_platforms", "cpu")


def define_flags() -> None:
    """Defines `--require_accelerator`."""
    flags.DEFINE_bool("require_accelerator", False, "End at once where jax finds no GPU and no TPU.")


def announce(file: TextIO | None = None) -> None:
    """Prints the devices of the run as one line, in process 0, to stdout unless told otherwise.

    Raises:
      UserError: `--require_accelerator` is set, and jax has the CPU alone.
    """
    devices = jax.devices()
    line, is_cpu = describe(devices), devices[0].platform == "cpu"
    if is_cpu and plugin_installed():
        line += "; a package for GPUs or TPUs is installed, but jax uses no such device"
    if is_cpu and flags.FLAGS.require_accelerator:
        raise UserError(f"--require_accelerator: there is only {line}")
    if processes.is_main():
        print(line, file=file, flush=True)


def describe(devices: list[jax.Device]) -> str:
    """Their number, kind and platform.

    >>> describe(jax.devices("cpu")[:1])
    '1 x cpu (platform cpu)'
    """
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    shared = f", in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{len(devices)} x {kinds} (platform {devices[0].platform}{shared})"
