"""What may come of a damaged file: one line that refuses it, or exactly what its bytes say; all else is a violation."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from freezejax import artifact, data, models
from freezejax.artifact import inspect
from freezejax.data import checksums, shards
from freezejax.errors import UserError
from freezejax.paths import leaf_paths
from tests.campaigns import mutations, reader, resealed

MAX_EXPANSION = 1000  # weights per byte of file, as the format promises
REFUSED, SAME, OTHER = "refused", "same content", "says so"

TINY = {"family": "geglu", "vocab_size": 260, "num_layers": 1, "model_dim": 16, "num_heads": 1}
MAPS = [
    {"pattern": ".*/(gate|up)/kernel", "kind": "map", "distribution": "hadamard"},
    {"pattern": ".*/(gate|up)/kernel", "kind": "gain"},
]
LORA = [{"pattern": ".*/qkv/kernel", "kind": "lora", "rank": 2, "alpha": 4.0}]
GOLF = {"family": "parameter_golf", "vocab_size": 300, "num_layers": 2, "model_dim": 16, "num_heads": 2}
NOTED = {"tokenizer": {"name": "bytes", "sha256": "ab" * 32}, "notes": {"seq_len": 64, "list": [1, None, "é"]}}
ARTIFACTS: list[dict[str, Any]] = [
    {"model": TINY, "codec": "int4", "compressor": "zlib"},
    {"model": {**TINY, "weights": [*MAPS, *LORA]}, "codec": "int6", "compressor": "brotli", **NOTED},
    {"model": {**GOLF, "num_kv_heads": 1}, "codec": [(".*emb.*", "int8"), (".*", "float16")], "compressor": "lzma"},
    {"model": {**TINY, "model_dim": 48, "num_heads": 2}, "codec": "int5", "compressor": "zstd", **NOTED},
    {"model": {**TINY, "weights": MAPS, "num_layers": 2}, "codec": "int6", "compressor": "none"},
    {"model": {**TINY, "rope_dims": 8}, "codec": "float16", "compressor": "zlib"},
]

Judge = Callable[[bytes], str]


class Subject(NamedTuple):
    """Valid files, ways to damage them, and what may come of `judge(content)`; `sealed` ones have a right digest."""

    name: str
    originals: list[bytes]
    kinds: dict[str, mutations.Mutation]
    judge: Judge


def subjects(folder: Path) -> list[Subject]:
    """What is damaged: artifacts, the same with a right digest, shards, listed shards, and the lists themselves."""
    (folder / "artifacts").mkdir(parents=True)
    made = [_make(folder / "artifacts" / f"{i}.fjax", **options) for i, options in enumerate(ARTIFACTS)]
    whole = dict(made)
    path = folder / "artifacts" / "damaged.fjax"
    shard_kinds = {**mutations.ANY, "numbers": mutations.shard_numbers}
    plain, listed, lists = (_shards(folder / name) for name in ("plain", "listed", "lists"))
    for place in (listed, lists):
        checksums.write(place)
    listing = (lists / checksums.NAME).read_bytes()
    return [
        Subject("artifact", list(whole), mutations.ANY, functools.partial(_judge_artifact, path, whole)),
        Subject("resealed", list(whole), resealed.RESEALED, functools.partial(_judge_artifact, path, None)),
        Subject("shard", _variants(plain), shard_kinds, _shard_judge(plain, listed=False)),
        Subject("listed shard", _variants(listed), shard_kinds, _shard_judge(listed, listed=True)),
        Subject("list", [listing], mutations.ANY, _list_judge(lists)),
    ]


def check_line(error: UserError, path: Path) -> None:
    message = str(error)
    assert message.startswith(str(path)), f"the error does not name the file: {message}"
    assert message.isprintable(), f"the error is not one printable line: {message!r}"
    assert len(message) < 1000, f"the error has {len(message)} characters"


# Artifacts.


def _make(path: Path, model: dict[str, Any], **options: Any) -> tuple[bytes, Any]:
    """A file's bytes, and the parameters it must give."""
    shapes, rng = jax.eval_shape(models.build(**model).init, jax.random.key(0)), np.random.default_rng(0)

    def drawn(leaf: Any) -> np.ndarray:
        is_seed = leaf.dtype == np.uint32
        return np.array([1, 2], np.uint32) if is_seed else rng.normal(size=leaf.shape).astype(np.float32)

    params = jax.tree.map(drawn, shapes)
    artifact.save(path, params, model=model, **options)
    return path.read_bytes(), artifact.quantize(params, options["codec"])


def _judge_artifact(path: Path, whole: dict[bytes, Any] | None, content: bytes) -> str:
    path.write_bytes(content)
    try:
        _, params, metadata = artifact.load(path)
    except UserError as error:
        check_line(error, path)
        return REFUSED
    assert whole is None or content in whole, "its bytes changed, and nothing was noticed"
    if whole is not None:
        _check_same(params, whole[content])
    said = reader.read(content)
    stored = sum(weights.size for weights in said.weights.values())
    assert stored <= MAX_EXPANSION * len(content), f"{stored} weights of {len(content)} bytes"
    for name in ("model", "tokenizer", "notes"):
        assert repr(metadata[name]) == repr(said.header[name]), f"{name} is not what the file says"
    assert metadata["seed"] == said.seed
    shapes, logits = _traced(json.dumps(said.header["model"], sort_keys=True))
    assert jax.tree.structure(params) == jax.tree.structure(shapes), "not the model's parameters"
    for name, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        wanted = np.array(said.seed, np.uint32) if leaf.dtype == np.uint32 else said.weights[name]
        assert np.isfinite(leaf).all(), f"{name} is not finite"
        assert leaf.dtype == wanted.dtype, f"{name} is {leaf.dtype}"
        assert leaf.shape == wanted.shape, f"{name} has shape {leaf.shape}"
        assert np.asarray(leaf).tobytes() == np.ascontiguousarray(wanted).tobytes(), f"{name} is not what the file says"
    assert logits.dtype == jnp.float32, f"logits are {logits.dtype}"
    _check_same(artifact.load(path)[1], params)
    assert str(path) in inspect.inspect(path)
    return SAME if whole is not None else OTHER


def _check_same(params: Any, wanted: Any) -> None:
    assert jax.tree.structure(params) == jax.tree.structure(wanted), "another structure"
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(wanted), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), "other values"


@functools.lru_cache(maxsize=64)
def _traced(config: str) -> tuple[Any, Any]:
    """Abstract parameters and logits of a model."""
    model = models.build(**json.loads(config))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return shapes, jax.eval_shape(model.apply, shapes, jax.ShapeDtypeStruct((1, 4), jnp.int32))


# Shards.


def _shards(folder: Path) -> Path:
    folder.mkdir()
    for split, n in (("train", 700), ("val", 40)):
        shards.write_shard(folder / f"fineweb_{split}_000000.bin", np.random.default_rng(n).integers(0, 256, n))
    return folder


def _variants(folder: Path) -> list[bytes]:
    """Shards of several lengths; the first is the folder's own."""
    own = (folder / "fineweb_train_000000.bin").read_bytes()
    return [own, *(own[:8] + n.to_bytes(4, "little") + own[12 : 1024 + 2 * n] for n in (0, 1, 50))]


def _load(folder: Path) -> data.Corpus:
    return data.load(str(folder), tokenizer="bytes", cache_dir=str(folder / "unused"))


def _shard_judge(folder: Path, *, listed: bool) -> Judge:
    path, own, fingerprint = folder / "fineweb_train_000000.bin", _variants(folder)[0], _load(folder).fingerprint

    def judge(content: bytes) -> str:
        path.write_bytes(content)
        try:
            corpus = _load(folder)
        except UserError as error:
            check_line(error, folder)
            return REFUSED
        assert np.asarray(corpus.train).tobytes() == content[1024:], "not the tokens of the file"
        assert np.asarray(corpus.train).max() < 256, "a token outside the vocabulary"
        assert (corpus.fingerprint == fingerprint) == (content == own), "the fingerprint does not tell the corpus"
        assert not listed or content == own, "it is not the file that is listed"
        return SAME if content == own else OTHER

    return judge


def _list_judge(folder: Path) -> Judge:
    fingerprint = _load(folder).fingerprint

    def judge(content: bytes) -> str:
        (folder / checksums.NAME).write_bytes(content)
        try:
            corpus = _load(folder)
        except UserError as error:
            check_line(error, folder)
            return REFUSED
        assert corpus.fingerprint == fingerprint, "another corpus"
        return SAME

    return judge
