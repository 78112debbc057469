"""Language models as pure functions over plain trees of arrays; see `Model`."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from freezejax.errors import UserError
from freezejax.masks import count_parameters as count
from freezejax.models import geglu, importers, parameter_golf
from freezejax.models.attention import causal_attention
from freezejax.models.base import Model, functional
from freezejax.models.config import make_config
from freezejax.models.family import Family, Params
from freezejax.models.geglu import GegluConfig
from freezejax.models.loss import cross_entropy
from freezejax.models.parameter_golf import ParameterGolfConfig
from freezejax.paths import check_known
from freezejax.weights import Rules, attach

__all__ = [
    "FAMILIES",
    "Family",
    "GegluConfig",
    "Model",
    "ParameterGolfConfig",
    "Params",
    "build",
    "causal_attention",
    "count",
    "cross_entropy",
    "from_torch",
]

# A new family is a file with its record and a line here.
FAMILIES: dict[str, Family] = {"geglu": geglu.FAMILY, "parameter_golf": parameter_golf.FAMILY}


def build(family: str, *, weights: Rules = (), **config: Any) -> Model:
    """The model of a family in `FAMILIES`, such as 'geglu'; `config` are fields of its config, such as `GegluConfig`.

    `weights` says which kernels are weights of another kind, see `freezejax.weights.kinds`.

    Raises:
      UserError: an unknown family or key, a value that no model can have, or a pattern that matches no kernel.

    >>> build("geglu", num_layers=2, model_dim=64, num_heads=4).config.mlp_mult
    2
    """
    known = _family(family)
    for name, kind in (("maps", "map"), ("lora", "lora")):
        if name in config:
            raise UserError(f"{name}=[{{'pattern': ...}}] is now weights=[{{'pattern': ..., 'kind': '{kind}'}}]")
    model = functional(known, make_config(known.config, config))
    return model._replace(init=attach(model.init, weights))


def from_torch(
    family: str, state: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[Callable[..., Any], Params]:
    """A model trained in PyTorch: `(apply, params)`, `apply(params, tokens_BxT) -> logits [B, T, V]`, see `Model`.

    `state` are numpy arrays by the names that the family has in PyTorch, see `Family.names`. `config` is as for
    `build`; keys such as `tie_embeddings` are checked and dropped.

    Raises:
      UserError: a missing or left-over name, a wrong shape, or anything `build` refuses.

    >>> from_torch("geglu", {}, {"num_layers": 1, "tied": False})
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: config tied=False: this family supports True only
    """
    model = build(family, **importers.drop_fixed(config, _family(family).fixed))
    return model.apply, importers.params_from_torch(model, state)


def _family(family: str) -> Family:
    check_known(family, FAMILIES, f"there is no model family {family!r}")
    return FAMILIES[family]
