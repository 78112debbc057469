"""The command that prints text: what `models.generate` says, and one line where something is missing."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from freezejax import models

ROOT = Path(__file__).resolve().parents[2]


def command(*flags):
    program = [sys.executable, "-m", "experiments.generate", *flags]
    return subprocess.run(program, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)


def test_it_prints_every_prompt_with_its_text(tmp_path):
    sizes = {"vocab_size": 256, "num_layers": 1, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
    model = models.build("llama", **sizes, mlp_mult=2, init_std=0.5)
    params = model.init(jax.random.key(0))
    models.save_pretrained(tmp_path / "model", model, params)
    prompts = ["ab", "abcde"]
    wanted = models.generate(model, params, [list(text.encode()) for text in prompts], tokens=6)
    flags = [f"--prompt={text}" for text in prompts]
    found = command(f"--model={tmp_path / 'model'}", "--tokenizer=bytes", "--tokens=6", *flags)
    assert found.returncode == 0, found.stderr
    lines = [text + bytes(row).decode("utf-8", errors="replace") for text, row in zip(prompts, wanted, strict=True)]
    assert found.stdout == "".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "error: --model is missing"),
        (["--model=/nowhere"], "error: --prompt is missing"),
        (["--model=/nowhere", "--prompt=a"], "error: /nowhere: no such folder, and no .gguf file"),
    ],
)
def test_what_is_missing_is_told_in_one_line(flags, message):
    found = command(*flags)
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].startswith(message)
