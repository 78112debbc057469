"""Settings every test runs under: silent promotions are errors, and Hypothesis is repeatable."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is LLVM at work on programs that run for milliseconds. XLA's own passes, which decide what is
# computed, held and sent, stay; JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests with all of them. Commands that tests start as a
# user does (tests/experiments, tests/aot) have all of them anyway.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest
from hypothesis import HealthCheck, settings

from freezejax import UserError

# The job of a shell in the background, and all that it starts, would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

settings.register_profile(
    "freezejax",
    deadline=None,
    max_examples=int(os.environ.get("FREEZEJAX_EXAMPLES", "15")),
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("freezejax")


@pytest.fixture(scope="session")
def run_alone() -> Callable[[ModuleType], Any]:
    """What a module prints last, as JSON, run on 8 devices: their number is fixed when jax starts, hence a process."""

    def run(module: ModuleType) -> Any:
        root = Path(__file__).parents[1]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
        command = [sys.executable, "-W", "error", str(module.__file__)]
        child = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        assert child.returncode == 0, child.stderr
        return json.loads(child.stdout.splitlines()[-1])

    return run


@pytest.fixture
def jax_as_a_reader_has_it():
    """With its defaults, which optax's Adam needs, on every thread: the training loop compiles on one of its own."""
    defaults = {"jax_numpy_dtype_promotion": "standard", "jax_numpy_rank_promotion": "allow"}
    before = {name: getattr(jax.config, name) for name in defaults}
    for name, value in defaults.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def check_refused() -> Callable[[Callable[[], Any], str], None]:
    """That a call ends in one line that matches a pattern."""

    def check(call: Callable[[], Any], message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)

    return check
