"""What the configs of all families check alike."""

from typing import Any

from freezejax.errors import UserError
from freezejax.fields import check_declared, told


def check_sizes(config: Any) -> None:
    """Refuses a config with a field, head, dropout rate or MLP width that no model can have."""
    check_declared(config, skipped=["dropout"])
    dim, heads, rate = config.model_dim, config.num_heads, config.dropout
    if dim % heads:
        raise UserError(f"{told(config, 'num_heads')} must divide model_dim={dim}")
    if dim // heads % 2:  # rotary embedding pairs dimensions
        raise UserError(f"{told(config, 'num_heads')} gives heads of {dim // heads} dims, which must be even")
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate < 1:
        raise UserError(f"{told(config, 'dropout')} must be a number in [0, 1)")
    width = config.mlp_mult * dim
    if abs(width - mlp_width(config)) > 1e-6 or width < 0.5:
        raise UserError(f"{told(config, 'mlp_mult')} must give an integer width, mlp_mult * model_dim is {width:g}")


def mlp_width(config: Any) -> int:
    """Hidden width `mlp_mult * model_dim`; `mlp_mult` may be a fraction as long as this is an integer."""
    return round(config.mlp_mult * config.model_dim)
