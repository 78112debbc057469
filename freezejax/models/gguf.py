"""Models of .gguf files: the config and tensors of transformers' layout that such a file stands for."""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from freezejax.errors import UserError
from freezejax.gguf_file import Gguf, open_gguf
from freezejax.paths import check_known


class Dequantized:
    """One tensor, which becomes float32 where numpy asks for its values; in torch's layout."""

    def __init__(self, tensor: Any, rearrange: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]):  # noqa: D107
        self._tensor, self._rearrange, self.shape = tensor, rearrange, shape
        self.size = int(np.prod(shape))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The values, float32 unless asked for another dtype."""
        from gguf import dequantize

        try:
            values = dequantize(self._tensor.data, self._tensor.tensor_type)
        except RuntimeError:  # package gguf names more kinds of quantization than it can undo
            kind = self._tensor.tensor_type.name
            raise UserError(f"tensor {self._tensor.name!r}: package gguf cannot dequantize {kind}") from None
        array = self._rearrange(values.reshape(self._tensor.shape[::-1].tolist()))
        return array if dtype is None else array.astype(dtype, copy=False)


def read(path: Path) -> tuple[dict[str, Any], Callable[[Iterable[str]], dict[str, Dequantized]]]:
    """The config.json that a file stands for, and a function that opens its tensors under the names it is given."""
    file = open_gguf(path)
    kind = str(file.field("general.architecture"))
    check_known(kind, _KINDS, f"{path}: architecture {kind!r} is not known")
    try:
        config = _KINDS[kind](file)
    except (TypeError, ZeroDivisionError) as error:
        raise UserError(f"{path}: fields that no model has: {error}") from None
    return config, functools.partial(_tensors, file, kind, config)


def _llama(file: Gguf) -> dict[str, Any]:
    of = lambda name, default=None: file.field(f"llama.{name}", default)  # noqa: E731
    if "rope_freqs.weight" in file.tensors or of("rope.scaling.type", "none") != "none":
        raise UserError(f"{file.path}: rescaled positions of GGUF are not read; give the folder with config.json")
    dim, heads = of("embedding_length"), of("attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": _vocabulary(file, "llama"),
        "num_hidden_layers": of("block_count"),
        "hidden_size": dim,
        "num_attention_heads": heads,
        "num_key_value_heads": of("attention.head_count_kv", heads),
        "head_dim": of("attention.key_length", dim // heads),
        "intermediate_size": of("feed_forward_length"),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "rope_theta": of("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }


def _gpt2(file: Gguf) -> dict[str, Any]:
    of = lambda name, default=None: file.field(f"gpt2.{name}", default)  # noqa: E731
    return {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": _vocabulary(file, "gpt2"),
        "n_layer": of("block_count"),
        "n_embd": of("embedding_length"),
        "n_head": of("attention.head_count"),
        "n_inner": of("feed_forward_length"),
        "n_positions": of("context_length"),
        "layer_norm_epsilon": of("attention.layer_norm_epsilon"),
        "tie_word_embeddings": True,  # the converter writes the embedding a second time
    }


_KINDS: dict[str, Callable[[Gguf], dict[str, Any]]] = {"llama": _llama, "gpt2": _gpt2}


def _vocabulary(file: Gguf, kind: str) -> int:
    if "token_embd.weight" in file.tensors:
        return int(file.tensors["token_embd.weight"].shape[1])
    return int(file.field(f"{kind}.vocab_size"))


def _tensors(file: Gguf, kind: str, config: Mapping[str, Any], hub_names: Iterable[str]) -> dict[str, Dequantized]:
    """The tensors under transformers' names, of which package `gguf` knows which is which."""
    import gguf

    architecture = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[kind]
    blocks = config.get("num_hidden_layers") or config["n_layer"]
    names = gguf.get_tensor_name_map(architecture, blocks)
    found: dict[str, Dequantized] = {}
    stems = {"lm_head", *(name.rpartition(".")[0] for name in hub_names)}  # a tied head may be there, too
    known = {gguf_name: stem for stem in stems if (gguf_name := names.get_name(stem))}
    for name, tensor in file.tensors.items():
        stem, _, last = name.rpartition(".")
        check_known(stem, known, f"{file.path}: the model has no place for {name!r}")
        hub_name, shape = f"{known[stem]}.{last}", tuple(tensor.shape[::-1].tolist())
        heads = _heads(hub_name, config)
        if heads:
            found[hub_name] = Dequantized(tensor, functools.partial(_unpermuted, heads), shape)
        elif kind == "gpt2" and len(shape) == 2 and ".h." in hub_name:  # transformers has these as [in, out]
            found[hub_name] = Dequantized(tensor, np.transpose, shape[::-1])
        else:
            found[hub_name] = Dequantized(tensor, np.asarray, shape)
    return found


def _heads(name: str, config: Mapping[str, Any]) -> int:
    """Heads of a Llama's query or key matrix, whose rows GGUF has in another order; 0 of any other."""
    match = re.search(r"self_attn\.([qk])_proj", name)
    return config[{"q": "num_attention_heads", "k": "num_key_value_heads"}[match[1]]] if match else 0


def _unpermuted(heads: int, array: np.ndarray) -> np.ndarray:
    """Rows of each head from pairs of rotated dims, as GGUF has them, to halves, as transformers has them."""
    return array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
