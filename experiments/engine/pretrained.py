"""A pretrained model on disk, as a study names it: a folder in Hugging Face's layout, or a .gguf file."""

import dataclasses
from pathlib import Path
from typing import Any

from freezejax import models
from freezejax.models import FAMILIES


def model_at(path: Path, **changes: Any) -> dict[str, Any]:
    """Family and config of a pretrained model, as for `models.build`; `changes` are fields of the config."""
    model = models.model_of(path, **changes)
    (family,) = (name for name, known in FAMILIES.items() if known is model.family)
    return {"family": family, **dataclasses.asdict(model.config)}


def tokenizer_of(path: Path) -> str:
    """The tokenizer beside a model, or inside it, as for config.data.tokenizer; "" where there is none."""
    if path.suffix == ".gguf":
        return str(path)
    sentencepiece = sorted(path.glob("*.model"))
    if sentencepiece:
        return str(sentencepiece[0])
    return str(path) if (path / "tokenizer.json").exists() else ""
