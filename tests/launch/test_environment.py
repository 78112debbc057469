"""XLA ends a process on a flag it does not know: the compilers take those of launch/env.sh."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USE_CPU = "import jax; print(len(jax.devices('cpu')))"
USE_TPU = """
from jax.experimental import topologies
print(len(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices))
"""
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def environment(kind, **before):
    """NAME=VALUE of launch/env.sh as a dict."""
    show = f"source launch/env.sh; printf '%s\\n' \"${{{kind}_environment[@]}}\""
    clean = {"PATH": os.environ["PATH"], **before}
    text = subprocess.run(["bash", "-uc", show], cwd=ROOT, env=clean, capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in text.splitlines())


def run(code, **variables):
    clean = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "JAX_PLATFORMS": "cpu", **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_xla_takes_the_gpu_flags():
    found = run(USE_CPU, **environment("gpu"))
    assert found.returncode == 0, found.stderr


def test_counterpart_xla_ends_on_a_flag_that_once_was():
    found = run(USE_CPU, **environment("gpu", XLA_FLAGS="--xla_gpu_enable_async_all_gather=true"))
    assert found.returncode != 0
    assert "Unknown flag" in found.stderr


needs_libtpu = pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu, of the extra preflight")


@needs_libtpu
def test_libtpu_takes_the_tpu_flags():
    found = run(USE_TPU, **NO_TPU, **environment("tpu"))
    assert (found.returncode, found.stdout.strip()) == (0, "8"), found.stderr


@needs_libtpu
def test_counterpart_libtpu_ends_on_an_unknown_flag():
    found = run(USE_TPU, **NO_TPU, **environment("tpu", LIBTPU_INIT_ARGS="--xla_tpu_nosuch=true"))
    assert found.returncode != 0


def test_what_the_user_has_set_wins_or_is_added():
    mine = environment("gpu", XLA_CLIENT_MEM_FRACTION="0.5", XLA_FLAGS="--xla_dump_to=x", NCCL_DEBUG="INFO")
    assert (mine["XLA_CLIENT_MEM_FRACTION"], mine["NCCL_DEBUG"]) == ("0.5", "INFO")
    assert mine["XLA_FLAGS"] == environment("gpu")["XLA_FLAGS"] + " --xla_dump_to=x"
    old = environment("gpu", XLA_PYTHON_CLIENT_MEM_FRACTION="0.6")
    assert (old["XLA_PYTHON_CLIENT_MEM_FRACTION"], "XLA_CLIENT_MEM_FRACTION" in old) == ("0.6", False)
    assert environment("tpu", LIBTPU_INIT_ARGS="--a=b")["LIBTPU_INIT_ARGS"].endswith(" --a=b")
