"""Checks shared by the model configs: heads, widths, dropout."""

from typing import Any

from freezejax.errors import UserError
from freezejax.fields import check_number, told


def check_dropout(config: Any) -> None:
    """Refuses a dropout rate outside [0, 1)."""
    rate = config.dropout
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate < 1:
        raise UserError(f"{told(config, 'dropout')} must be a number in [0, 1)")


def check_heads(config: Any) -> None:
    """Refuses a width that the heads do not divide, or an odd head (rotary embedding pairs dimensions)."""
    dim, heads = config.model_dim, config.num_heads
    if dim % heads:
        raise UserError(f"{told(config, 'num_heads')} must divide model_dim={dim}")
    if dim // heads % 2:
        raise UserError(f"{told(config, 'num_heads')} gives heads of {dim // heads} dims, which must be even")


def mlp_width(config: Any) -> int:
    """Hidden width `mlp_mult * model_dim`; `mlp_mult` may be a fraction as long as this is an integer.

    Raises:
      UserError: the product is not an integer of at least 1.

    >>> from freezejax.models.geglu import GegluConfig
    >>> mlp_width(GegluConfig(model_dim=192, num_heads=6, mlp_mult=1.5))
    288
    """
    check_number(config, "mlp_mult")
    width = config.mlp_mult * config.model_dim
    if abs(width - round(width)) > 1e-6 or width < 0.5:
        wanted = f"must give an integer width, mlp_mult * model_dim is {width:g}"
        raise UserError(f"{told(config, 'mlp_mult')} {wanted}")
    return round(width)
