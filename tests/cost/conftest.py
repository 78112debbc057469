"""Steps are compiled as a user compiles them."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def promotion_as_a_user_has_it() -> Iterator[None]:
    """optax's Adam adds a float to an int32 count."""
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", before)
