"""Tokenizers of pretrained models: made here by the package `tokenizers`, byte-level and with byte pieces."""

import gguf
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from freezejax import data
from freezejax.data.json_tokenizers import JsonTokenizer
from freezejax.errors import UserError

TEXT = ["The quick brown fox, 1984: jumps over the lazy dog's äöü back.", "Naïve 漢字 and 🙂, twice 🙂🙂."] * 20


def byte_level(bos=False):
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<|bos|>", "<|eos|>"]
    made.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=special)
    )
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "a_model"
    path.mkdir()
    byte_level().save(str(path / "tokenizer.json"))
    return path


@settings(max_examples=30)
@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_every_text_comes_back_and_its_bytes_are_counted(folder, text):
    tokenizer = JsonTokenizer(folder)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    table = tokenizer.byte_table()
    inputs = np.concatenate([[0], ids[:-1]]).astype(int) if len(ids) else ids
    assert data.byte_counts(table, inputs, ids).sum() == len(text.encode())


def test_it_counts_merged_tokens_too(folder):
    ids = JsonTokenizer(folder).encode(TEXT[0])
    assert len(ids) < len(TEXT[0].encode()) / 1.5


def test_name_special_tokens_and_fingerprint(folder, tmp_path):
    tokenizer = JsonTokenizer(folder)
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.bos_id) == ("a_model", 300, None)
    table = tokenizer.byte_table()
    assert table.boundary_V[:2].all()
    assert not table.boundary_V[2:].any()
    assert (table.base_V[:2] == 0).all()
    byte_level(bos=True).save(str(tmp_path / "other.json"))
    other = data.tokenizer_at(tmp_path / "other.json")
    assert (other.name, other.bos_id) == ("other", 0)
    assert other.fingerprint != tokenizer.fingerprint
    assert other.encode("a").tolist() == tokenizer.encode("a").tolist()  # none is added


def test_byte_pieces_and_marks_of_spaces_are_counted_as_sentencepiece_counts_them(tmp_path):
    vocab = {
        piece: i
        for i, piece in enumerate(["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "▁a", "ab", "▁▁"])
    }
    made = tokenizers.Tokenizer(
        models.BPE(vocab, [("▁", "a"), ("a", "b"), ("▁", "▁")], byte_fallback=True, unk_token="<unk>")
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = JsonTokenizer(tmp_path / "tokenizer.json")
    text = "ab aé  b"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    table = tokenizer.byte_table()
    assert data.byte_counts(table, np.concatenate([[vocab["b"]], ids[:-1]]), ids).sum() == len(text.encode())


def test_a_corpus_is_tokenized_with_it_and_says_so(folder, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("\n".join(TEXT), encoding="utf-8")
    corpus = data.load(str(tmp_path / "text"), tokenizer=str(folder), cache_dir=str(tmp_path / "cache"))
    assert corpus.tokenizer.name == "a_model"
    assert JsonTokenizer(folder).decode(np.asarray(corpus.train[:20])) in "\n".join(TEXT)
    again = data.load(str(tmp_path / "text"), tokenizer=str(folder), cache_dir=str(tmp_path / "cache"))
    assert again.fingerprint == corpus.fingerprint


def gguf_file(path, kind="gpt2", cut="smollm"):
    """A file that holds a tokenizer alone."""
    made = byte_level()
    content = __import__("json").loads(made.to_str())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(cut)
    tokens = sorted(content["vocab"], key=content["vocab"].get)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in content["merges"]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("cut", ["gpt-2", "smollm", "llama-bpe"])
def test_the_tokenizer_inside_a_gguf_file(cut, folder, tmp_path):
    tokenizer = data.tokenizer_at(gguf_file(tmp_path / "model.gguf", cut=cut))
    assert tokenizer.name == "model"
    for text in TEXT[:2]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert (ids.tolist() == JsonTokenizer(folder).encode(text).tolist()) or cut != "gpt-2"
    assert tokenizer.encode("<|eos|>").tolist() == [1]
    tokenizer.save(tmp_path, "copy")
    copy = data.tokenizer_at(tmp_path / "copy.tokenizer.json")
    assert (copy.name, copy.fingerprint) == ("copy", tokenizer.fingerprint)


def test_numbers_are_cut_as_the_file_says(tmp_path):
    """Of a vocabulary with the pair 1 9, smollm's cut never merges digits."""
    long = {
        cut: data.tokenizer_at(gguf_file(tmp_path / f"{cut}.gguf", cut=cut)).encode("1984")
        for cut in ("gpt-2", "smollm")
    }
    assert len(long["smollm"]) == 4
    assert len(long["gpt-2"]) < 4


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no such tokenizer"), ("{}", "not a tokenizer.json"), ("\x80\x04", "not a tokenizer.json")],
)
def test_what_is_no_tokenizer_is_told_in_one_line(content, message, tmp_path):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        data.tokenizer_at(tmp_path)
    assert "\n" not in str(error.value)


def test_kinds_that_are_not_read(tmp_path):
    with pytest.raises(UserError, match="its tokenizer is of kind 'llama'; only byte-level BPE"):
        data.tokenizer_at(gguf_file(tmp_path / "a.gguf", kind="llama"))
    with pytest.raises(UserError, match=r"tokenizer\.ggml\.pre='smolm' is not known; nearest: smollm"):
        data.tokenizer_at(gguf_file(tmp_path / "b.gguf", cut="smolm"))
