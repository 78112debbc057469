"""Settings every test runs under: silent promotions are errors, and Hypothesis is repeatable."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from hypothesis import HealthCheck, settings

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
