"""Settings every test runs under: silent promotions are errors, and Hypothesis is repeatable."""

import os
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is LLVM at work on programs that run for milliseconds. XLA's own passes, which decide what is
# computed, held and sent, stay; JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests with all of them. Commands that tests start as a
# user does (tests/experiments, tests/aot) have all of them anyway.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
from hypothesis import HealthCheck, settings

# The job of a shell in the background, and all that it starts, would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

settings.register_profile(
    "freezejax",
    deadline=None,
    max_examples=int(os.environ.get("FREEZEJAX_EXAMPLES", "25")),
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("freezejax")
