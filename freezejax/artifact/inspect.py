"""Where every byte of a file goes, what the code beside it weighs, and whether the file is whole."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from freezejax import models
from freezejax.artifact import container
from freezejax.artifact.store import load, read_metadata
from freezejax.errors import UserError

_MAX_MAP, _MAX_MAPS = 1 << 28, 1 << 32  # weights that a forward pass draws at once, and in all
_COLUMNS = ("part", "shape", "codec", "encoding", "bytes", "bits/weight", "SQNR dB")
_SECTIONS = {
    "scales": "scales, one float16 per row",
    "small": "small tensors",
    "table": "table of tensors",
    "header": "header",
    "seed": "base seed",
    "preamble": "magic, version, SHA-256",
    "padding": "padding",
}


def inspect(path: str | Path) -> str:
    """A table whose bytes add up to the file; errors are those of `load`."""
    meta = read_metadata(path)
    rows = [_COLUMNS, *map(_tensor_row, meta["tensors"])]
    rows += [(title, "", "", "", f"{meta['sizes'][name]:,}", "", "") for name, title in _SECTIONS.items()]
    rows += [("total = file", "", "", "", f"{meta['bytes']:,}", "", "")]
    rows += [_map_row(found) for found in meta["maps"]]
    stored, drawn = (sum(math.prod(found["shape"]) for found in meta[part]) for part in ("tensors", "maps"))
    unknown = meta["seed"] is not None and not meta["maps"]
    seeded = "seeded ones not known: the file does not say its maps" if unknown else f"{drawn:,} seeded"
    return "\n".join([_title(path, meta), f"{stored:,} weights stored, {seeded}", "", *_aligned(rows)])


def verify(path: str | Path) -> str:
    """Loads the file, decodes every tensor and runs the model on a few tokens; one line that says so.

    Raises:
      UserError: as `load`; or the logits are not finite, or a map is too large to draw here.
    """
    meta = read_metadata(path)
    if meta["model"] is None:
        with container.opened(path) as parts:
            container.decode(parts)
        return f"ok: {_title(path, meta)}, {len(meta['tensors'])} tensors; no model is named, nothing was run"
    apply, params, _ = load(path)
    weights = [math.prod(found["shape"]) for found in meta["maps"]]
    if max(weights, default=0) > _MAX_MAP or sum(weights) > _MAX_MAPS:
        raise UserError(f"{path}: its maps of {sum(weights):,} weights are too large to verify")
    vocabulary = models.build(**meta["model"]).config.vocab_size
    tokens_1xT = jnp.asarray(np.arange(8, dtype=np.int32)[None] % vocabulary)
    try:
        finite = bool(jnp.isfinite(jax.jit(apply)(params, tokens_1xT)).all())
    except Exception as error:  # the config comes from a file: whatever it breaks is the file's fault
        raise UserError(f"{path}: the model does not run: {type(error).__name__}: {error}") from None
    if not finite:
        raise UserError(f"{path}: the model's logits are not finite")
    return f"ok: {_title(path, meta)}, {len(meta['tensors'])} tensors and {len(weights)} maps, logits finite"


def code_size(code: Iterable[str | Path] = ()) -> tuple[int, int]:
    """Bytes and number of the `.py` files among files and folders, each once; without any, freezejax itself."""
    found: set[Path] = set()  # source: the contract of openai/parameter-golf
    for root in [Path(path) for path in code] or [Path(__file__).parents[1]]:
        files = [root] if root.is_file() else list(root.rglob("*.py"))
        if not files:
            raise UserError(f"--code={root}: no such file, or a folder without .py files")
        found.update(file.resolve() for file in files)
    return sum(file.stat().st_size for file in found), len(found)


def _title(path: str | Path, meta: dict[str, Any]) -> str:
    family = "none named" if meta["model"] is None else meta["model"]["family"]
    return f"{path}: {meta['bytes']:,} bytes, family {family}, compressor {meta['compressor']}"


def _tensor_row(found: dict[str, Any]) -> tuple[str, ...]:
    size, small = math.prod(found["shape"]), found["encoding"] == "small"
    bits = 16.0 if small else 8 * found["bytes"] / size
    count = "below" if small else f"{found['bytes']:,}"
    kind = (found["codec"], found["encoding"], count, f"{bits:.2f}", f"{found['sqnr_db']:.1f}")
    return (found["path"], "x".join(map(str, found["shape"])), *kind)


def _map_row(found: dict[str, Any]) -> tuple[str, ...]:
    kind = found["distribution"] if found["portable"] else f"{found['distribution']}, not portable"
    return (found["path"], "x".join(map(str, found["shape"])), "map", kind, "0", "0.00", "")


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Text columns left, number columns right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = "<<<<>>>"
    return ["  ".join(f"{c:{s}{w}}" for c, s, w in zip(row, sides, widths, strict=True)).rstrip() for row in rows]
