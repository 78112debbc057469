"""The artifact's header: what a file says about itself, written as JSON and trusted only after checking."""

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from freezejax.artifact.codecs import CODECS
from freezejax.artifact.compress import COMPRESSORS, decompress
from freezejax.artifact.tensors import CodecRules, Tensor, check_codec, is_small
from freezejax.errors import UserError
from freezejax.paths import nearest

MAX_BYTES = 1 << 22  # of the JSON text; a leaf takes about 60
_MAX_DIMS = 8
_MAX_PATTERN, _MAX_REPEATS = 4096, 6
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


def make_header(
    tensors: list[Tensor],
    model: Mapping[str, Any] | None,
    codec: CodecRules,
    compressor: str,
    tokenizer: Mapping[str, str] | None,
    notes: Any,
    *,
    seeded: bool,
) -> Header:
    """The header of a file to be written, checked as it will be when it is read.

    Raises:
      UserError: an unknown codec or compressor, something JSON cannot hold, or what `check` refuses.
    """
    if compressor not in list(COMPRESSORS):
        raise UserError(f"there is no compressor {compressor!r}; {nearest(str(compressor), COMPRESSORS)}")
    for name, value in (("model", model), ("tokenizer", tokenizer)):
        if value is not None and not isinstance(value, Mapping):
            right = "the mapping given to models.build, with its family" if name == "model" else "a name and a sha256"
            shown = repr(value) if len(repr(value)) < 40 else f"a {type(value).__name__}"
            raise UserError(f"artifact header: {name}={shown} is not a mapping; pass {right}")
    reference = None if tokenizer is None else dict(tokenizer)
    named = None if model is None else dict(model)
    header = Header(named, check_codec(codec), compressor, seeded, reference, notes, tensors)
    try:
        text = _text_of(header)
        check(json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"artifact header: {error}") from None
    if len(text) > MAX_BYTES:
        raise UserError(f"artifact header: {len(text)} bytes of JSON; at most {MAX_BYTES}: store shorter notes")
    return header


def to_bytes(header: Header) -> tuple[bytes, int]:
    """The compressed JSON and the length of its text."""
    text = _text_of(header)
    coder = zlib.compressobj(9, wbits=-15)
    return coder.compress(text) + coder.flush(), len(text)


def from_bytes(data: bytes, size: int) -> Header:
    """The inverse of `to_bytes`, every field checked.

    Raises:
      ValueError: (`UserError` is one) no header that this version writes.
    """
    if size > MAX_BYTES:
        raise ValueError(f"its header is of {size} bytes; at most {MAX_BYTES}")
    try:
        return check(json.loads(decompress("zlib", data, size), parse_constant=_refuse))
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None


def check(fields: Any) -> Header:
    """The header of decoded JSON.

    Raises:
      ValueError: a field that is missing, left over, of another type or out of range.
    """
    if not isinstance(fields, dict) or set(fields) != set(Header._fields):
        raise ValueError(f"its header does not have exactly the fields {', '.join(Header._fields)}")
    if not isinstance(fields["seeded"], bool):
        raise ValueError("field 'seeded' is not true or false")
    if fields["compressor"] not in list(COMPRESSORS):
        raise ValueError(
            f"unknown compressor {fields['compressor']!r}; {nearest(str(fields['compressor']), COMPRESSORS)}"
        )
    tensors = _tensors(fields["tensors"])
    _check_tokenizer(fields["tokenizer"])
    _check_model(fields["model"], len(tensors))
    rules = [(_text(pattern), _codec(name)) for pattern, name in _lists(fields["codec"], 2, "codec")]
    return Header(**{**fields, "codec": rules, "tensors": tensors})


def _text_of(header: Header) -> bytes:
    tensors = [[t.path, list(t.shape), t.codec] for t in header.tensors]
    return json.dumps({**header._asdict(), "tensors": tensors}, allow_nan=False, separators=(",", ":")).encode()


def _tensors(entries: Any) -> list[Tensor]:
    tensors = [_tensor(*entry) for entry in _lists(entries, 3, "tensors")]
    if len({tensor.path for tensor in tensors}) < len(tensors):
        raise ValueError("two tensors have one path")
    return tensors


def _tensor(path: Any, shape: Any, codec: Any) -> Tensor:
    if not isinstance(shape, list) or len(shape) > _MAX_DIMS:
        raise ValueError(f"tensor {path!r}: its shape is not a list of at most {_MAX_DIMS} integers")
    for size in shape:
        _integer(size, f"tensor {path!r}: a side")
    tensor = Tensor(_text(path), tuple(shape), _codec(codec))
    if is_small(tensor.shape) and codec != "float16":
        raise ValueError(f"tensor {path!r} of shape {tensor.shape} is small and must be float16")
    return tensor


def _check_model(model: Any, num_tensors: int) -> None:
    if model is None:
        return
    if not isinstance(model, dict) or not isinstance(model.get("family"), str):
        raise ValueError("field 'model' names no family")
    _check_numbers(model)
    layers = model.get("num_layers")
    if isinstance(layers, int) and layers > num_tensors:  # before anything is built: each layer stores a leaf
        raise ValueError(f"the model has {layers} layers, but {num_tensors} tensors are stored")
    rules = model.get("weights", [])
    for rule in rules if isinstance(rules, list) else []:
        if isinstance(rule, dict) and isinstance(rule.get("pattern"), str):
            _check_pattern(rule["pattern"])


def _check_numbers(value: Any) -> None:
    """Finite floats and 32-bit integers all the way down."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        _check_numbers(child)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} in field 'model'")
    if isinstance(value, int) and abs(value) >= 2**31:
        raise ValueError(f"an integer in field 'model' is beyond 32 bits: {str(value)[:12]}...")


def _check_pattern(pattern: str) -> None:
    """Refuses patterns that a backtracking matcher could take forever over: files come from anywhere."""
    repeats = sum(pattern.count(sign) for sign in "*+?{(")
    nested = any(f"){sign}" in pattern for sign in "*+{")
    if len(pattern) > _MAX_PATTERN or repeats > _MAX_REPEATS or nested or _tries(pattern) > _MAX_TRIES:
        raise ValueError(
            f"pattern {pattern[:40]!r}: in an artifact at most {_MAX_PATTERN} characters, at most {_MAX_REPEATS} "
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


def _check_tokenizer(tokenizer: Any) -> None:
    if tokenizer is None:
        return
    if not isinstance(tokenizer, Mapping) or set(tokenizer) != {"name", "sha256"}:
        raise ValueError("field 'tokenizer' is not {'name': ..., 'sha256': ...}")
    for value in tokenizer.values():
        _text(value)


def _lists(entries: Any, length: int, name: str) -> list[list[Any]]:
    if not isinstance(entries, list) or not all(isinstance(e, list) and len(e) == length for e in entries):
        raise ValueError(f"field {name!r} is not a list of lists of {length}")
    return entries


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 4096:
        raise ValueError(f"{str(value)[:40]!r} is no printable text")
    return value


def _codec(value: Any) -> str:
    if value not in CODECS:
        raise ValueError(f"unknown codec {value!r}; {nearest(str(value), CODECS)}")
    return str(value)


def _integer(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError(f"{what} is {str(value)[:24]}, not an integer in [0, 2^31)")
    return value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} in the header")
