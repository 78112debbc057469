"""Several artifacts as one model, whose files fit a budget together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freezejax import models
from freezejax.artifact.store import Apply, load
from freezejax.errors import UserError
from freezejax.models import ensemble
from freezejax.paths import PyTree


def load_ensemble(
    paths: Sequence[str | Path], *, combine: ensemble.Combine = "logits", budget: int | None = None
) -> tuple[Apply, PyTree, dict[str, Any]]:
    """The ensemble of the models of several files: `(apply, params, metadata)`, as `load` gives them of one.

    `metadata` has `model`, as for `models.build`; `tokenizer`; `bytes`, of all files; and `members`, the metadata of
    each file. The members weigh the same: `params["mix"]` is zero. A file that is given twice counts twice.

    Args:
      paths: files whose models read the same tokens. Their base seeds may differ; to `save` the ensemble as one file
        they must not.
      combine: the mean of what, "logits" or "probabilities".
      budget: the most bytes that the files may take together; None = any.

    Raises:
      UserError: as `load`; other tokens than those of the first file; more bytes than the budget.
    """
    if not paths:
        raise UserError("an ensemble of no files: give at least one")
    loaded = [load(path) for path in paths]
    members = [about for _, _, about in loaded]
    _check_tokens(paths, members)
    total = sum(about["bytes"] for about in members)
    if budget is not None and total > budget:
        raise UserError(f"{', '.join(map(str, paths))}: {total:,} bytes together, {total - budget:,} over {budget:,}")
    config: dict[str, Any] = {"family": "ensemble", "members": [about["model"] for about in members]}
    config["combine"] = combine
    tokenizer = next((about["tokenizer"] for about in members if about["tokenizer"]), None)
    metadata = {"model": config, "tokenizer": tokenizer, "bytes": total, "members": members}
    return models.build(**config).apply, ensemble.join([params for _, params, _ in loaded]), metadata


def _check_tokens(paths: Sequence[str | Path], members: Sequence[dict[str, Any]]) -> None:
    """Refuses members over other tokens than the first; a file that names no tokenizer is taken at its size."""
    named = [(path, about["tokenizer"]) for path, about in zip(paths, members, strict=True) if about["tokenizer"]]
    for path, tokenizer in named:
        first, wanted = named[0]
        if tokenizer["sha256"] != wanted["sha256"]:
            raise UserError(f"{path}: its tokenizer is {tokenizer['name']}, that of {first} another, {wanted['name']}")
    sizes = [models.build(**about["model"]).config.vocab_size for about in members]
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            raise UserError(f"{path}: its vocabulary is of {size} tokens, that of {paths[0]} of {sizes[0]}")
