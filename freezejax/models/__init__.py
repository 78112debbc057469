"""Language models as pure functions over plain trees of arrays; see `Model`."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from freezejax.masks import count_parameters as count
from freezejax.models import ensemble, geglu, gpt2, importers, llama, nemotron_h, parameter_golf
from freezejax.models.attention import causal_attention
from freezejax.models.base import Model, build, family_named
from freezejax.models.ensemble import EnsembleConfig
from freezejax.models.family import FAMILIES, Family, Params
from freezejax.models.geglu import GegluConfig
from freezejax.models.generation import generate
from freezejax.models.gpt2 import Gpt2Config
from freezejax.models.llama import LlamaConfig
from freezejax.models.loss import cross_entropy
from freezejax.models.nemotron_h import NemotronHConfig
from freezejax.models.parameter_golf import ParameterGolfConfig
from freezejax.models.peft import adapter_rules, folder_rules, load_adapter, save_adapter
from freezejax.models.pretrained import load_pretrained, model_of, save_pretrained

__all__ = [
    "FAMILIES",
    "EnsembleConfig",
    "Family",
    "GegluConfig",
    "Gpt2Config",
    "LlamaConfig",
    "Model",
    "NemotronHConfig",
    "ParameterGolfConfig",
    "Params",
    "adapter_rules",
    "build",
    "causal_attention",
    "count",
    "cross_entropy",
    "folder_rules",
    "from_torch",
    "generate",
    "load_adapter",
    "load_pretrained",
    "model_of",
    "save_adapter",
    "save_pretrained",
]

FAMILIES.update(
    geglu=geglu.FAMILY,
    parameter_golf=parameter_golf.FAMILY,
    ensemble=ensemble.FAMILY,
    gpt2=gpt2.FAMILY,
    llama=llama.FAMILY,
    nemotron_h=nemotron_h.FAMILY,
)


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
    model = build(family, **importers.drop_fixed(config, family_named(family).fixed))
    return model.apply, importers.params_from_torch(model, state)
