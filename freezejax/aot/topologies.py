"""Devices of a machine that is not attached: `"h100:1x1x8"`, `"v5e:16x16"`, `"v5p:4x4x4"`, for the real compilers.

Only a CPU is needed. The compilers come with the packages of the `preflight` extra. Set `JAX_PLATFORMS=cpu`, or jax
looks for the accelerators and says at length that there are none.
"""

import importlib.util
import math
import mmap
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax.experimental import topologies

from freezejax.chips import CHIPS, Chip
from freezejax.errors import UserError
from freezejax.paths import nearest

# Keeps libtpu from asking a metadata server which TPU this machine is, and lets two processes load it.
_QUIET_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Topology(NamedTuple):
    """Devices to compile for; they cannot run anything.

    >>> Topology("v5e:1x1", CHIPS["v5e"], ()).chip.platform
    'tpu'
    """

    name: str
    chip: Chip
    devices: Sequence[Any]

    @property
    def kind(self) -> str:
        """The chip's name in `CHIPS`."""
        return self.name.partition(":")[0]


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """Chip and shape of a topology's text.

    Raises:
      UserError: an unknown chip, or a shape of the wrong length.

    >>> parse("v5e:16x16")
    ('v5e', (16, 16))
    >>> parse("h100:8")
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: topology 'h100:8': expected slices x hosts x GPUs, as h100:1x1x8
    """
    kind, _, text = name.partition(":")
    if kind not in CHIPS:
        raise UserError(f"topology {name!r}: no chip {kind!r}; there are {', '.join(CHIPS)}; {nearest(kind, CHIPS, 1)}")
    shape = tuple(int(size) for size in text.split("x")) if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text) else ()
    if len(shape) != CHIPS[kind].axes:
        raise UserError(f"topology {name!r}: expected {CHIPS[kind].shape}")
    return kind, shape


def missing_packages(name: str) -> list[str]:
    """Modules that compiling for a topology needs and that are not installed.

    >>> missing_packages("v5e:2x4") in ([], ["libtpu"])
    True
    """
    return [module for module in CHIPS[parse(name)[0]].packages if not _is_installed(module)]


def load(name: str) -> Topology:
    """The devices of a topology.

    Raises:
      UserError: a text that says no topology, packages that are missing, or a target description that moved.
    """
    kind, shape = parse(name)
    chip = CHIPS[kind]
    if missing := missing_packages(name):
        extra = "install the preflight extra: uv pip install '.[preflight]'"
        raise UserError(f"compiling for {name} needs {' and '.join(missing)}; {extra}")
    try:
        devices = _describe(chip.platform, name).devices
    except RuntimeError as error:  # of the compiler, or of a plugin that has no topologies
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"topology {name!r}: the compiler refuses it: {reason}; expected {chip.shape}") from None
    if len(devices) != math.prod(shape):
        raise UserError(f"topology {name!r}: the compiler made {len(devices)} devices of it")
    return Topology(name, chip, devices)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that the module would be in
        return False


def _describe(platform: str, name: str) -> Any:
    if platform == "cuda":
        description, shape = h100_description(_cuda_library()), name.partition(":")[2]
        return topologies.get_topology_desc(platform="cuda", target_config=description, topology=shape)
    for variable, value in _QUIET_TPU.items():
        os.environ.setdefault(variable, value)
    return topologies.get_topology_desc(platform="tpu", topology_name=name)


def _cuda_library() -> Path:
    spec = importlib.util.find_spec("jax_plugins.xla_cuda12")
    assert spec is not None
    return Path(spec.origin or "").with_name("xla_cuda_plugin.so")


def h100_description(library: Path) -> str:
    """What the compiler must know of an H100: the text that the CUDA plugin's shared library holds.

    Where it stands is documented nowhere, so another version may hold it elsewhere.

    Raises:
      UserError: it is not there, or is not what it was.
    """
    name = b'device_description_str: "NVIDIA H100 80GB HBM3"\n'
    try:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
            found = held.find(name)
            text = held[held.rfind(b"\0", 0, found) + 1 : held.find(b"\0", found)] if found >= 0 else b""
    except (OSError, ValueError):  # no file, or an empty one
        text = b""
    if b"gpu_device_info" not in text:
        raise UserError(
            f"{library.name} does not hold the H100's description where it was in jax-cuda12-pjrt 0.12.0.1; "
            "install the versions of requirements.lock"
        )
    return text.decode()
