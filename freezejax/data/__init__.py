"""Text and tokens: corpora, tokenizers, FineWeb shards, batches, byte accounting. Arrays only, no JAX."""

from freezejax.data.corpus import Corpus, load, tokenizer_at
from freezejax.data.iterators import Batch, eval_batches, train_iterator
from freezejax.data.shards import ConcatenatedTokens, Tokens, read_shard, write_shard
from freezejax.data.tokenizers import (
    ByteTable,
    ByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    bits_per_byte,
    byte_counts,
    train_bpe,
)

__all__ = [
    "Batch",
    "ByteTable",
    "ByteTokenizer",
    "ConcatenatedTokens",
    "Corpus",
    "SentencePieceTokenizer",
    "Tokenizer",
    "Tokens",
    "bits_per_byte",
    "byte_counts",
    "eval_batches",
    "load",
    "read_shard",
    "tokenizer_at",
    "train_bpe",
    "train_iterator",
    "write_shard",
]
