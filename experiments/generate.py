"""Text from a pretrained model: a folder of Hugging Face's layout or a .gguf file, with a PEFT adapter or without.

    python -m experiments.generate --model=smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --prompt="The garden was"

Several --prompt run as one batch. Without --temperature the most likely token is taken each time.
"""

from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from experiments.engine import cli
from freezejax import data, models
from freezejax.errors import UserError


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("model", None, "Folder with config.json and safetensors, or a .gguf file.")
    flags.DEFINE_string("adapter", None, "PEFT folder to put over it.")
    flags.DEFINE_string(
        "tokenizer", None, "Tokenizer, where the model has none beside it, as for config.data.tokenizer."
    )
    flags.DEFINE_multi_string("prompt", [], "Text to go on from; may be given several times.")
    flags.DEFINE_integer("tokens", 64, "How many at most.", lower_bound=1)
    flags.DEFINE_float("temperature", 0.0, "0 = the most likely token; above 0 one is drawn.", lower_bound=0.0)
    flags.DEFINE_integer("top_k", 0, "Draw from so many of the likeliest; 0 = from all.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Of what is drawn.", lower_bound=0)
    flags.DEFINE_integer("stop", None, "Token that ends a text.", lower_bound=0)


def main() -> None:
    """Prints every prompt with what the model puts after it."""
    given = flags.FLAGS
    if not given.model:
        raise UserError("--model is missing: give the folder of a model, or a .gguf file")
    if not given.prompt:
        raise UserError("--prompt is missing: give the text to go on from")
    cli.use_compilation_cache()
    model = models.model_of(given.model)
    spec = given.tokenizer or given.model
    tokenizer = data.ByteTokenizer() if spec == "bytes" else data.tokenizer_at(spec)
    _, params = models.load_pretrained(given.model, given.adapter)
    prompts = [_encoded(tokenizer, text) for text in given.prompt]
    found = models.generate(
        model,
        params,
        prompts,
        tokens=given.tokens,
        temperature=given.temperature,
        top_k=given.top_k,
        key=jax.random.key(given.seed),
        stop=given.stop,
    )
    for text, row in zip(given.prompt, found, strict=True):
        print(text + tokenizer.decode(row))


def _encoded(tokenizer: data.Tokenizer, text: str) -> Sequence[int]:
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids: list[int] = np.concatenate([np.array(start, np.int32), tokenizer.encode(text)]).tolist()
    if not ids:
        raise UserError(f"--prompt={text!r}: no token, and this tokenizer has none to begin with")
    return ids


if __name__ == "__main__":
    define_flags()
    cli.run(main)
