"""Every damaged, foreign or lying file ends in one line that names it; nothing else ever comes out."""

import json
import zlib

import jax
import numpy as np
import pytest

from freezejax import artifact, models
from freezejax.artifact import container, header
from freezejax.errors import UserError


@pytest.fixture(scope="module")
def content(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "x.fjax"
    config, params = trained("maps")
    artifact.save(path, params, model=config, codec="int4", compressor="zlib", notes={"run": 1})
    return path.read_bytes()


@pytest.fixture
def refused(tmp_path):
    """`refused(content) -> message` of the one error that loading it ends in; it names the file."""

    def check(content):
        path = tmp_path / "damaged.fjax"
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            artifact.load(path)
        message = str(error.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        return message.removeprefix(f"{path}: ")

    return check


def parts(content):
    _, version, _, header_bytes, text_size, _ = container.PREAMBLE.unpack_from(content)
    body = content[container.PREAMBLE.size :]
    return version, header_bytes, text_size, body


def with_header(content, change):
    """The file with its header changed and its digest made right again."""
    version, header_bytes, _, body = parts(content)
    fields = json.loads(zlib.decompress(body[:header_bytes], wbits=-15))
    text = json.dumps(change(fields) or fields).encode()
    coder = zlib.compressobj(9, wbits=-15)
    packed = coder.compress(text) + coder.flush()
    return container.seal(version, len(packed), len(text), packed + body[header_bytes:])


def flip(content, at):
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


@pytest.fixture(scope="module")
def small_content(tmp_path_factory):
    config = {"family": "geglu", "vocab_size": 260, "num_layers": 1, "model_dim": 16, "num_heads": 1}
    path = tmp_path_factory.mktemp("small") / "x.fjax"
    params = models.build(**config).init(jax.random.key(0))
    saved = artifact.save(path, params, model=config, codec="int4", compressor="zlib")
    assert all(saved.sizes[part] for part in ("header", "table", "scales", "small", "codes"))
    return path.read_bytes()


def check_every_flip(content, step):
    for at in range(0, len(content), step):
        try:
            container.parse(flip(content, at))
        except ValueError:  # `load` names the file and makes it a UserError
            continue
        raise AssertionError(f"byte {at} flipped, and nothing was noticed")


def test_every_single_flipped_byte_is_detected(small_content):
    check_every_flip(small_content, 1)


def test_without_the_digest_flips_pass_silently(small_content, monkeypatch):
    class Constant:
        digest_size = 32

        def __init__(self, _=b""):
            pass

        def update(self, _):
            pass

        def digest(self):
            return bytes(32)

    monkeypatch.setattr(container.hashlib, "sha256", Constant)
    with pytest.raises(AssertionError):
        check_every_flip(container.seal(*parts(small_content)), 97)


def test_truncated(content, refused):
    assert refused(b"") == "not a freezejax artifact"
    assert refused(content[:30]) == "truncated: 30 bytes are fewer than the first 58"
    for size in (58, 60, len(content) // 2, len(content) - 1):
        assert refused(content[:size]) == f"truncated: {size} of {len(content)} bytes, or its length is damaged"
    assert "damaged" in refused(content + b"\0")


def test_foreign_and_newer_files(content, refused):
    assert refused(b"PK\x03\x04" + bytes(100)) == "not a freezejax artifact"
    assert "transfer in text mode" in refused(content.replace(b"\r\n", b"\n"))
    _, *rest = parts(content)
    assert refused(container.seal(3, *rest)) == "written by a newer freezejax: format 3, this one reads 2"
    assert refused(container.seal(1, *rest)).startswith(
        "format 1, which named maps and adapters otherwise, is no longer"
    )
    assert refused(container.seal(0, *rest)) == "damaged: format 0 does not exist"


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "none.fjax", tmp_path):
        with pytest.raises(UserError, match=f"{path}: (there is no such file|a folder, not an artifact)"):
            artifact.load(path)


def _model(**changes):
    return lambda fields: fields["model"].update(changes)


def _tensor(index, value):
    def change(fields):
        large = next(entry for entry in fields["tensors"] if entry[0] == DOWN)
        large[index] = value

    return change


DOWN = "blocks/0/mlp/down/kernel"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _model(vocab_size=71),
            "wrong model: leaf 'tok_emb/embedding' has shape (70, 64), the model asks for (71, 64)",
        ),
        (_model(num_layers=1), "wrong model: it has no leaf 'blocks/1/attn/out/kernel'; nearest: blocks/0/"),
        (_model(num_layers=3), "wrong model: leaf 'blocks/2/attn/out/kernel' is missing"),
        (_model(num_layers=10**6), "damaged: the model has 1000000 layers, but"),
        (_model(weights=[]), "wrong model: leaf 'blocks/0/attn/qkv/kernel' is missing"),
        (_model(family="gpt"), "the model it names cannot be built: there is no model family 'gpt'"),
        (_model(width=3), "the model it names cannot be built: GegluConfig has no field 'width'"),
        (_model(mlp_mult=1e300), "the model it names cannot be built: GegluConfig.mlp_mult=1e+300 gives a width"),
        (_model(vocab_size=2**40), "damaged: an integer in field 'model' is beyond 32 bits"),
        (_model(weights=[{"pattern": "(a|a)*/kernel", "kind": "lora"}]), "damaged: pattern '(a|a)*/kernel'"),
        (_tensor(0, "nowhere"), f"wrong model: leaf '{DOWN}' is missing"),
        (_tensor(0, "two\nlines"), "damaged: 'two\\nlines' is no printable text"),
        (_tensor(1, [4096]), f"damaged: tensor '{DOWN}' of shape (4096,) is small"),
        (_tensor(1, [2**20, 2**20]), "damaged: 10995"),
        (_tensor(1, [-64, 64]), f"damaged: tensor '{DOWN}': a side is -64, not an integer"),
        (_tensor(1, "é\n"), f"damaged: tensor '{DOWN}': its shape is not a list"),
        (_tensor(2, "int7"), "damaged: there is no codec 'int7'; nearest: int8"),
        (lambda fields: fields.update(compressor="gzip"), "damaged: there is no compressor 'gzip'; nearest: "),
        (lambda fields: fields.update(compressor="brotli"), "damaged: "),
        (lambda fields: fields.update(seeded=False), "damaged: "),
        (lambda fields: fields.update(extra=1), "damaged: its header does not have exactly the fields"),
        (lambda fields: fields["tensors"].append(fields["tensors"][0]), "damaged: two tensors have one path"),
        (lambda fields: [1], "damaged: its header does not have exactly the fields"),
    ],
)
def test_a_lying_header_is_told(change, message, content, refused):
    assert refused(with_header(content, change)).startswith(message)


RIGHT = ["m", "m", [64, 8], "normal", "fan_in"]


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([["m", "m", [64, 8], "nromal", 0.5]], "damaged: random map 'm': no distribution 'nromal'; nearest: normal"),
        ([["m", "m", [64, -8], "normal", "none"]], "damaged: random map 'm': shape=[64, -8] must be (in, out)"),
        ([["m", "m", [64, 8], "normal", 1e99]], "damaged: random map 'm': scale=1e+99 must be"),
        ([["m", "two\nlines", [64, 8], "normal", "none"]], "damaged: 'two\\nlines' is no printable text"),
        ([["m", 3, [64, 8], "normal", "none"]], "damaged: '3' is no printable text"),
        ([["m", "m", [64, 8], "normal"]], "damaged: field 'maps' is not a list of lists of 5"),
        ({"m": 1}, "damaged: field 'maps' is not a list of lists of 5"),
        ([RIGHT, RIGHT], "damaged: two maps have one path"),
        ([RIGHT], "damaged: field 'maps' is of a model that is named, or of no seed"),
    ],
)
def test_recipes_that_lie_are_told(maps, message, content, refused):
    assert refused(with_header(content, lambda fields: fields.update(maps=maps))).startswith(message)


def test_a_named_model_says_its_maps_in_its_config_alone(content):
    _, header_bytes, _, body = parts(content)
    fields = json.loads(zlib.decompress(body[:header_bytes], wbits=-15))
    assert list(fields) == ["model", "codec", "compressor", "seeded", "tokenizer", "notes", "tensors"]


def model_with(pattern):
    return {"family": "geglu", "weights": [{"pattern": pattern, "kind": "map"}]}


def fields_with(pattern):
    reply = {"model": model_with(pattern), "codec": [[".*", "int6"]], "compressor": "none", "seeded": True}
    return {**reply, "tokenizer": None, "notes": None, "tensors": []}


LAYERS = "|".join(map(str, range(512)))
MANY = "(" + "|" * 130 + ")"  # so many ways to match nothing
REPEATED = {"a repeated group": "(a|a)*b", "nested": "((a+)b)+c", "counted": "(a|b){9}c", "seven stars": ".*" * 7}
TOO_MANY = {
    "groups of many": MANY * 4 + "x",
    "inside each other": f"({MANY}|b){MANY}{MANY}x",
    "then stars": f"{MANY}{'.*' * 4}x",
}


@pytest.mark.parametrize(
    "pattern",
    [
        f"blocks/({LAYERS})/(attn|mlp)/[^/]+/kernel",
        f"({'|'.join(f'blocks/{i}/mlp/up/kernel' for i in range(150))})",
        ".*" * 6,
    ],
    ids=["512 layers", "150 paths", "six stars"],
)
def test_a_pattern_of_many_layers_may_stand_in_a_header(pattern):
    assert 6 < len(pattern) <= 4096
    assert header.check(fields_with(pattern)).model == model_with(pattern)


def test_the_blocks_of_a_hybrid_are_letters_and_no_regular_expression():
    hybrid = {"family": "nemotron_h", "pattern": "ME*-" * 9, "num_layers": 1}
    assert header.check({**fields_with(""), "model": hybrid}).model == hybrid
    with pytest.raises(ValueError, match="no repeated group"):
        header.check({**fields_with(""), "model": {**hybrid, "weights": [{"pattern": "ME*-" * 9, "kind": "map"}]}})


@pytest.mark.parametrize(
    "pattern", [*REPEATED.values(), *TOO_MANY.values(), "a" * 4097], ids=[*REPEATED, *TOO_MANY, "long"]
)
def test_a_pattern_that_could_take_for_ever_is_refused_unmatched(pattern):
    with pytest.raises(ValueError, match="no repeated group, and not several groups of many alternatives"):
        header.check(fields_with(pattern))


@pytest.mark.parametrize("name", TOO_MANY)
def test_counterpart_without_the_bound_of_its_steps_it_is_taken(name, monkeypatch):
    monkeypatch.setattr(header, "_MAX_TRIES", 10**100)
    header.check(fields_with(TOO_MANY[name]))


def test_a_model_whose_maps_name_sixty_layers_is_saved_and_loaded(tmp_path):
    """As `places` of the selective study writes them: over 200 characters, which were refused."""
    pattern = f"blocks/({'|'.join(map(str, range(60)))})/(attn|mlp)/[^/]+/kernel"
    assert len(pattern) > 200
    config = {"family": "geglu", "vocab_size": 16, "num_layers": 60, "model_dim": 16, "num_heads": 1}
    config["weights"] = [{"pattern": pattern, "kind": "map"}]
    shapes = jax.eval_shape(models.build(**config).init, jax.random.key(0))
    artifact.save(
        tmp_path / "x.fjax", jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), model=config
    )
    _, params, meta = artifact.load(tmp_path / "x.fjax")
    assert len(meta["maps"]) == 5 * 60
    assert jax.tree.structure(params) == jax.tree.structure(shapes)


@pytest.mark.parametrize("text", [b"[" * 10**6, b'{"model":' + b"[" * 900 + b"]" * 900 + b"}", b"\xff", b'{"a":NaN}'])
def test_a_header_that_is_no_header(text, content, refused):
    coder = zlib.compressobj(9, wbits=-15)
    packed = coder.compress(text) + coder.flush()
    assert refused(container.seal(container.VERSION, len(packed), len(text), packed)).startswith("damaged: ")


def test_content_that_does_not_decode(content, refused):
    version, header_bytes, text_size, body = parts(content)
    rng = np.random.default_rng(0)
    refusals = 0
    for at in rng.integers(header_bytes, len(body), 40):  # with the digest made right again
        sealed = container.seal(version, header_bytes, text_size, flip(body, at))
        try:
            container.decode(container.parse(sealed))
        except ValueError:
            refusals += 1
    assert refusals > 5
    assert refused(container.seal(version, header_bytes, text_size, body[: header_bytes + 20])).startswith("damaged: ")
