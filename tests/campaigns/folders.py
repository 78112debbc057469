"""What others' programs write and we read: model folders, adapters, .gguf files, tokenizers, puzzles; what may come."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tokenizers

from freezejax import models, weights
from freezejax.data import tokenizer_at, train_bpe
from freezejax.data.puzzles import Puzzle, read_jsonl, write_jsonl
from freezejax.errors import UserError
from freezejax.models import importers, peft, tensors
from freezejax.models.pretrained import CONFIG
from tests.campaigns.judges import OTHER, REFUSED, SAME, Subject, check_line
from tests.campaigns.mutations import ANY, Mutation, Rng
from tests.models.test_gguf import write as write_gguf

LLAMA = {"vocab_size": 40, "num_layers": 2, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
TEXT = "The quick brown fox, 1984: jumps over the lazy dog's äöü back. 漢字 🙂\n"
# What stands where a number, a text or a list should.
HOSTILE = [None, True, -1, 0, 1, 3, 2**31, 2**63, 10**400, 0.5, -0.5, 1e308, float("nan"), float("inf"), [], {}, [1]]
HOSTILE += ["", "x", "9" * 5000, "\ud800", "a\nb\x1b[31m", "(a+)+$", "../x", {"a": {"b": []}}, "[" * 9]


def subjects(folder: Path) -> list[Subject]:
    """One valid file of each kind in a folder of its own, beside what it belongs to."""
    made = [_weights, _sharded, _config, _adapter, _adapter_config, _gguf, _json_tokenizer, _sentencepiece, _puzzles]
    return [make(folder / make.__name__[1:]) for make in made]


# Ways to damage them.


def json_values(rng: Rng, content: bytes, other: bytes) -> bytes:
    """Some values of a JSON file, or of a line of it, replaced, left out or put in; rarely one nested without end."""
    lines = content.decode().split("\n")
    whole = content[:1] == b"{" and _is_json(content.decode())
    at = 0 if whole else int(rng.integers(sum(map(bool, lines))))
    found = json.loads(content if whole else lines[at])
    for _ in range(int(rng.integers(1, 4))):
        _change(rng, found)
    text = json.dumps(found)
    if rng.random() < 0.05:
        text = text.replace(": ", f": {'[' * 100_000}", 1)
    return _bytes(text if whole else "\n".join([*lines[:at], text, *lines[at + 1 :]]))


def _is_json(text: str) -> bool:
    try:
        return json.loads(text) is not None
    except ValueError:
        return False


def _change(rng: Rng, found: Any) -> None:
    """A value somewhere in it."""
    while True:
        keys = list(found) if isinstance(found, dict) else list(range(len(found)))
        if not keys:
            return
        key = keys[int(rng.integers(len(keys)))]
        if not isinstance(found[key], dict | list) or rng.random() < 0.3:
            break
        found = found[key]
    what = rng.random()
    if what < 0.15:
        del found[key]
    elif what < 0.25 and isinstance(found, dict):
        found["more"] = found[key]
    else:
        found[key] = HOSTILE[int(rng.integers(len(HOSTILE)))]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def safetensors_header(rng: Rng, content: bytes, other: bytes) -> bytes:
    """Its header changed as JSON, or the number of its bytes."""
    (size,) = struct.unpack_from("<Q", content)
    if rng.random() < 0.2:
        lie = int(rng.choice([0, 1, size - 1, size + 1, len(content), 2**31, 2**63]))
        return struct.pack("<Q", lie) + content[8:]
    header = json_values(rng, content[8 : 8 + size].rstrip(), b"")
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def gguf_numbers(rng: Rng, content: bytes, other: bytes) -> bytes:
    """Lengths, counts and kinds of its header that lie."""
    at, width = int(rng.integers(4, 600)), int(rng.choice([4, 8]))
    lie = (
        int(rng.choice([0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1])) if width == 4 else int(rng.choice([0, 2**40]))
    )
    return content[:at] + lie.to_bytes(width, "little") + content[at + width :]


JSON: dict[str, Mutation] = {**ANY, "values": json_values}


def _subject(path: Path, kinds: dict[str, Mutation], use: Callable[[bytes], Any]) -> Subject:
    original = path.read_bytes()

    def judge(content: bytes) -> str:
        path.write_bytes(content)
        try:
            use(content)
        except UserError as error:
            check_line(error, path.parent)
            return REFUSED
        return SAME if content == original else OTHER

    return Subject(path.parent.name, [original], kinds, judge)


# What each is used for.


def _model(folder: Path, **options: Any) -> tuple[models.Model, Any]:
    model = models.build("llama", **LLAMA, mlp_mult=2.0)
    params = model.init(jax.random.key(0))
    models.save_pretrained(folder, model, params, **options)
    return model, params


def _load(folder: Path, adapter: Path | None = None) -> tuple[models.Model, Any]:
    """A model that can be used, whatever its folder says."""
    model, (apply, params) = models.model_of(folder), models.load_pretrained(folder, adapter)
    logits = jax.eval_shape(apply, params, jax.ShapeDtypeStruct((1, 4), jnp.int32))
    assert logits.shape == (1, 4, model.config.vocab_size), f"logits are {logits.shape}"
    assert logits.dtype == jnp.float32, f"logits are {logits.dtype}"
    return model, params


def _check_said(model: models.Model, params: Any, said: dict[str, np.ndarray]) -> None:
    """Every parameter is the tensor that another reader finds."""
    for name, array in importers.state_to_torch(model, params).items():
        wanted = said[name].astype(np.float32)
        assert array.tobytes() == wanted.tobytes(), f"{name} is not what the file says"


def _weights(folder: Path) -> Subject:
    _model(folder)

    def use(content: bytes) -> None:
        _check_said(*_load(folder), safetensors.numpy.load(content))

    return _subject(folder / tensors.SINGLE, {**ANY, "header": safetensors_header}, use)


def _sharded(folder: Path) -> Subject:
    _model(folder, shard_bytes=4000)
    return _subject(folder / tensors.INDEX, JSON, lambda _: _load(folder))


def _config(folder: Path) -> Subject:
    _model(folder)
    return _subject(folder / CONFIG, JSON, lambda _: _load(folder))


def _with_adapter(folder: Path) -> Path:
    """A model with a LoRA beside it; the folder of the LoRA."""
    model, params = _model(folder / "model")
    rules = [{"pattern": ".*/(q|v)_proj/kernel", "kind": "lora", "rank": 2}]
    models.save_adapter(folder / "adapter", model, weights.recast(params, rules, jax.random.key(1)))
    return folder / "adapter"


def _adapter(folder: Path) -> Subject:
    place = _with_adapter(folder)
    subject = _subject(
        place / peft.TENSORS,
        {**ANY, "header": safetensors_header},
        lambda _: _load(folder / "model", place),
    )
    return subject._replace(name="adapter's weights")


def _adapter_config(folder: Path) -> Subject:
    place = _with_adapter(folder)
    subject = _subject(place / peft.CONFIG, JSON, lambda _: _load(folder / "model", place))
    return subject._replace(name="adapter's config")


def _gguf(folder: Path) -> Subject:
    folder.mkdir(parents=True)
    model = models.build("llama", **{**LLAMA, "model_dim": 32, "head_dim": 16}, mlp_mult=2.0)
    path = folder / "llama.gguf"
    write_gguf(path, model, model.init(jax.random.key(0)))
    return _subject(path, {**ANY, "numbers": gguf_numbers}, lambda _: _load(path))


def _use_tokenizer(path: Path) -> None:
    tokenizer = tokenizer_at(str(path))
    ids = tokenizer.encode(TEXT)
    assert ((ids >= 0) & (ids < tokenizer.vocab_size)).all(), "a token outside the vocabulary"
    assert isinstance(tokenizer.decode(ids), str)
    assert all(len(column) == tokenizer.vocab_size for column in tokenizer.byte_table())


def _json_tokenizer(folder: Path) -> Subject:
    folder.mkdir(parents=True)
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder, path = tokenizers.decoders.ByteLevel(), folder / "tokenizer.json"
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, special_tokens=["<eos>"])
    made.train_from_iterator([TEXT] * 5, trainer)
    made.save(str(path))
    return _subject(path, JSON, lambda _: _use_tokenizer(path))


def _sentencepiece(folder: Path) -> Subject:
    folder.mkdir(parents=True)
    path = folder / "bpe.model"
    train_bpe([TEXT.lower() * 40], 320, path)
    return _subject(path, ANY, lambda _: _use_tokenizer(path))


def _puzzles(folder: Path) -> Subject:
    folder.mkdir(parents=True)
    path = folder / "train.jsonl"
    write_jsonl(path, [Puzzle("numerals", f"{i} -> ", "I" * i) for i in range(1, 9)])

    def use(content: bytes) -> None:
        found = read_jsonl(path)
        said = [json.loads(line) for line in content.decode().split("\n") if line.strip()]
        for puzzle, line in zip(found, said, strict=True):
            assert {**line, **puzzle._asdict()} == {"family": "train", **line}, "not what the line says"

    return _subject(path, JSON, use)
