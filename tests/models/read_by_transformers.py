"""What transformers and PEFT make of the folders of `tests.models.saved`, a line of JSON. Needs no jax, no freezejax.

In an environment with torch, transformers and peft:

    python -m tests.models.saved DIR          (in freezejax's)
    python tests/models/read_by_transformers.py DIR >> tests/models/read_by_transformers.jsonl
"""

import hashlib
import json
import sys
from pathlib import Path


def logits(model):
    import torch

    tokens = (torch.arange(12).reshape(2, 6) * 5) % 17
    with torch.no_grad():
        return [round(value, 6) for value in model.eval()(tokens).logits.flatten().tolist()]


def hashes(folder):
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read(folder):
    import peft
    import transformers

    if (folder / "config.json").exists():
        model, told = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        wrong = {name: sorted(map(str, keys)) for name, keys in told.items() if keys}
        return {"class": type(model).__name__, "wrong": wrong, "logits": logits(model), "sha256": hashes(folder)}
    base = transformers.AutoModelForCausalLM.from_pretrained(folder.parent / folder.name.partition("_over_")[2])
    model = peft.PeftModel.from_pretrained(base, folder)
    return {"class": type(model).__name__, "wrong": {}, "logits": logits(model), "sha256": hashes(folder)}


def main():
    import peft
    import torch
    import transformers

    found = {folder.name: read(folder) for folder in sorted(Path(sys.argv[1]).iterdir())}
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    print(json.dumps({"versions": versions, "folders": found}))


if __name__ == "__main__":
    main()
