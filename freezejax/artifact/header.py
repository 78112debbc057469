"""The artifact's header: what a file says about itself, written as JSON and trusted only after checking."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from freezejax.artifact.codecs import CODECS, LEVELS
from freezejax.artifact.encode import COMPRESSORS, decompress
from freezejax.artifact.tensors import CodecRules, Tensor, check_codec, recipes, seed_leaves, stored_tensors
from freezejax.errors import UserError
from freezejax.paths import PyTree, check_known
from freezejax.weights import RandomMap

MAX_BYTES = 1 << 22  # of the JSON text; a leaf takes about 60
_MAX_DIMS, _MAX_TEXT, _MAX_REPEATS = 8, 4096, 6
_MAX_TRIES, _PATH = 1 << 22, 32  # steps that a backtracking matcher may take, and how far one repetition may reach


class Header(NamedTuple):
    """What stands in the header; `tensors` in the order of their bytes."""

    model: dict[str, Any] | None  # "family" and its config, as for `models.build`; None = parameters alone
    codec: list[tuple[str, str]]
    compressor: str
    seeded: bool  # whether a base seed is stored
    tokenizer: dict[str, str] | None
    notes: Any
    tensors: list[Tensor]
    maps: dict[str, RandomMap]  # recipes of the maps of a model that is not named, by path; left out where none


def make_header(
    params: PyTree,
    model: Mapping[str, Any] | None = None,
    codec: CodecRules = "int6",
    compressor: str = "none",
    tokenizer: Mapping[str, str] | None = None,
    notes: Any = None,
) -> Header:
    """The header of a file of parameters, or of their shapes; a `UserError` where its reader would refuse it."""
    header = Header(
        model=_as_dict("model", model, "the mapping given to models.build, with its family"),
        codec=check_codec(codec),
        compressor=compressor,
        seeded=bool(seed_leaves(params)),
        tokenizer=_as_dict("tokenizer", tokenizer, "a name and a sha256"),
        notes=notes,
        tensors=stored_tensors(params, codec),
        maps=recipes(params) if model is None else {},
    )
    try:
        text = _text_of(header)
        check(json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"artifact header: {error}") from None
    if len(text) > MAX_BYTES:
        raise UserError(f"artifact header: {len(text)} bytes of JSON; at most {MAX_BYTES}: store shorter notes")
    return header


def _as_dict(name: str, value: Any, right: str) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, Mapping):
        shown = repr(value) if len(repr(value)) < 40 else f"a {type(value).__name__}"
        raise UserError(f"artifact header: {name}={shown} is not a mapping; pass {right}")
    return None if value is None else dict(value)


def to_bytes(header: Header) -> tuple[bytes, int]:
    """The compressed JSON and the length of its text."""
    text = _text_of(header)
    return COMPRESSORS["zlib"].compress(text), len(text)


def _text_of(header: Header) -> bytes:
    fields = header._asdict() | {"tensors": [[t.path, t.shape, t.codec] for t in header.tensors]}
    maps = [[path, m.name, m.shape, m.distribution, m.scale] for path, m in fields.pop("maps").items()]
    return json.dumps(fields | ({"maps": maps} if maps else {}), allow_nan=False, separators=(",", ":")).encode()


def from_bytes(data: bytes, size: int) -> Header:
    """The inverse of `to_bytes`, every field checked; a `ValueError` where this version writes no such header."""
    if size > MAX_BYTES:
        raise ValueError(f"its header is of {size} bytes; at most {MAX_BYTES}")
    try:
        fields = json.loads(decompress("zlib", data, size))
        json.dumps(fields, allow_nan=False)  # refuses NaN and infinities
        return check(fields)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    except UserError as error:
        raise ValueError(str(error)) from None


def check(fields: Any) -> Header:
    """The header of decoded JSON; a `ValueError` where a field is missing, left over, of another type or range."""
    if not isinstance(fields, dict) or {*fields, "maps"} != set(Header._fields):
        raise ValueError(f"its header does not have exactly the fields {', '.join(Header._fields)}")
    if not isinstance(fields["seeded"], bool):
        raise ValueError("field 'seeded' is not true or false")
    check_known(str(fields["compressor"]), COMPRESSORS, f"there is no compressor {fields['compressor']!r}", count=3)
    tensors = [_tensor(*entry) for entry in _lists(fields["tensors"], 3, "tensors")]
    if len({tensor.path for tensor in tensors}) < len(tensors):
        raise ValueError("two tensors have one path")
    if (tokenizer := fields["tokenizer"]) is not None:
        if not isinstance(tokenizer, dict) or set(tokenizer) != {"name", "sha256"}:
            raise ValueError("field 'tokenizer' is not {'name': ..., 'sha256': ...}")
        for value in tokenizer.values():
            _check_text(value)
    if fields["model"] is not None:
        _check_model(fields["model"], len(tensors))
    maps = _maps(_lists(fields.get("maps", []), 5, "maps"))
    if maps and (fields["model"] is not None or not fields["seeded"]):
        raise ValueError("field 'maps' is of a model that is named, or of no seed")
    rules = check_codec(_lists(fields["codec"], 2, "codec"))
    for pattern, _ in rules:
        _check_text(pattern)
    return Header(**{**fields, "codec": rules, "tensors": tensors, "maps": maps})


def _lists(entries: Any, length: int, name: str) -> list[Any]:
    if not isinstance(entries, list) or not all(isinstance(e, list) and len(e) == length for e in entries):
        raise ValueError(f"field {name!r} is not a list of lists of {length}")
    return entries


def _check_text(value: Any) -> None:
    if not isinstance(value, str) or not value.isprintable() or len(value) > _MAX_TEXT:
        raise ValueError(f"{str(value)[:40]!r} is no printable text")


def _tensor(path: Any, shape: Any, codec: Any) -> Tensor:
    if not isinstance(shape, list) or len(shape) > _MAX_DIMS:
        raise ValueError(f"tensor {path!r}: its shape is not a list of at most {_MAX_DIMS} integers")
    for size in shape:
        if type(size) is not int or not 0 <= size < 2**31:
            raise ValueError(f"tensor {path!r}: a side is {str(size)[:24]}, not an integer in [0, 2^31)")
    _check_text(path)
    check_known(str(codec), (*CODECS, *LEVELS), f"there is no codec {codec!r}", count=3)
    tensor = Tensor(path, tuple(shape), codec)
    if tensor.small and codec != "float16":
        raise ValueError(f"tensor {path!r} of shape {tensor.shape} is small and must be float16")
    return tensor


def _maps(entries: list[Any]) -> dict[str, RandomMap]:
    found = {}
    for path, name, shape, distribution, scale in entries:
        _check_text(path)
        _check_text(name)
        found[path] = RandomMap(shape, distribution, scale, name)
    if len(found) < len(entries):
        raise ValueError("two maps have one path")
    return found


def _check_model(model: Any, num_tensors: int) -> None:
    if not isinstance(model, dict) or not isinstance(model.get("family"), str):
        raise ValueError("field 'model' names no family")
    for value in jax.tree.leaves(model):
        if isinstance(value, int) and abs(value) >= 2**31:
            raise ValueError(f"an integer in field 'model' is beyond 32 bits: {str(value)[:12]}...")
    parts = list(_mappings(model))  # the model itself, its rules, and the models that it is made of
    layers = [part.get("num_layers", 1) for part in parts if "family" in part]
    depth = sum(max(count, 1) for count in layers if isinstance(count, int))
    if depth > max(num_tensors, 1):  # before anything is built: each layer, and each model, stores a leaf
        raise ValueError(f"the model has {depth} layers, but {num_tensors} tensors are stored")
    for rule in _mappings([part.get("weights") for part in parts]):
        if isinstance(rule.get("pattern"), str):  # elsewhere it is no regex: a hybrid's blocks by letter
            _check_pattern(rule["pattern"])


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in decoded JSON, at any depth."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _mappings(inner)


def _check_pattern(pattern: str) -> None:
    """Refuses patterns that a backtracking matcher could take forever over: files come from anywhere."""
    repeats = sum(pattern.count(sign) for sign in "*+?{(")
    nested = any(f"){sign}" in pattern for sign in "*+{")
    if len(pattern) > _MAX_TEXT or repeats > _MAX_REPEATS or nested or _tries(pattern) > _MAX_TRIES:
        raise ValueError(
            f"pattern {pattern[:40]!r}: in an artifact at most {_MAX_TEXT} characters, at most {_MAX_REPEATS} "
            "of * + ? { (, no repeated group, and not several groups of many alternatives"
        )


def _tries(pattern: str) -> int:
    """Bound of the steps of a match: each choice of the groups' alternatives with each of the repetitions' ends."""
    groups, done = [1], 1
    for sign in pattern:
        if sign == "(":
            groups.append(1)
        elif sign == "|":
            groups[-1] += 1
        elif sign == ")" and len(groups) > 1:
            done *= groups.pop()
    ends = sum(pattern.count(sign) for sign in "*+{")
    return done * math.prod(groups) * 2 ** pattern.count("?") * math.comb(_PATH + ends, ends)
