"""The training step of `benchmarks/step.py` in PyTorch, as its own process that takes orders.

    python benchmarks/torch_step.py FOLDER

reads `FOLDER/config.json` and `FOLDER/arrays.npz` (parameters under torch names, batches `inputs` and `targets`
[batches, B, T]), prints a line of JSON with its version, and then answers each line of standard input, `{"program":
NAME, "steps": N}`, with the losses of N further steps. Only torch and numpy are needed. A program may also be a single
matmul (operands in `FOLDER/operands.npz`, see `benchmarks/matmuls.py`): it runs N times and answers with some values.

The model is what a PyTorch user would write for this machine: `scaled_dot_product_attention`, `rms_norm`, the fused
AdamW, `zero_grad(set_to_none=True)`. A program may also go through `torch.compile`.
"""
# ruff: noqa: D107 - what a module is stands in its class docstring

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Attention(nn.Module):
    """Causal self-attention; rotary embedding, in the halves form, on the first `rope_dims` of each head."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        dim, self.heads, self.rotated = config["model_dim"], config["num_heads"], config["rope_dims"]
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        half = self.rotated // 2
        frequency = config["rope_base"] ** (-torch.arange(half, dtype=torch.float32) / half)
        angle = torch.outer(torch.arange(config["seq_len"], dtype=torch.float32), frequency)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """[B, H, T, D] -> [B, H, T, D]."""
        half = self.rotated // 2
        x1, x2, rest = x.split((half, half, x.shape[-1] - self.rotated), dim=-1)
        return torch.cat([x1 * self.cos - x2 * self.sin, x2 * self.cos + x1 * self.sin, rest], dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]."""
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(B, T, D))


class Norm(nn.Module):
    """RMSNorm with a learned scale."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.scale, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D]."""
        return F.rms_norm(x, self.scale.shape, self.scale, self.eps)


class Mlp(nn.Module):
    """`down(gelu(gate x) * up x)`."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(dim, width, bias=False), nn.Linear(dim, width, bias=False)
        self.down = nn.Linear(width, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.down(F.gelu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Pre-norm block."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        dim, eps = config["model_dim"], config["norm_eps"]
        self.ln1, self.attn = Norm(dim, eps), Attention(config)
        self.ln2, self.mlp = Norm(dim, eps), Mlp(dim, int(dim * config["mlp_mult"]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Geglu(nn.Module):
    """Embedding, blocks, final norm, tied head, mean cross-entropy."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(config["vocab_size"], config["model_dim"])
        self.blocks = nn.ModuleList([Block(config) for _ in range(config["num_layers"])])
        self.ln_f = Norm(config["model_dim"], config["norm_eps"])

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Tokens and targets [B, T] -> loss."""
        x = self.tok_emb(inputs)
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.tok_emb.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Program:
    """One model, its optimizer and the position in the batches; frozen parameters are `requires_grad=False`."""

    def __init__(
        self, arrays: dict[str, np.ndarray], config: dict[str, Any], frozen: list[str], compiled: bool
    ) -> None:
        batches = (torch.from_numpy(arrays[name]).long() for name in ("inputs", "targets"))
        self.inputs, self.targets = (batch.to(DEVICE) for batch in batches)
        self.model = Geglu(config).to(DEVICE)
        state = {name: torch.from_numpy(arrays[name].copy()) for name in self.model.state_dict()}
        self.model.load_state_dict(state)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = name not in frozen
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        o = config["optimizer"]
        self.clip, betas = o["clip"], (o["b1"], o["b2"])
        self.optimizer = torch.optim.AdamW(
            self.parameters, o["learning_rate"], betas, o["eps"], o["weight_decay"], fused=True
        )
        self.loss = torch.compile(self.model) if compiled else self.model
        self.index = 0

    def step(self) -> torch.Tensor:
        """One update; the loss before it."""
        batch = self.index % len(self.inputs)
        self.index += 1
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.inputs[batch], self.targets[batch])
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        return loss.detach()

    def run(self, steps: int) -> list[float]:
        """The losses of so many further steps, fetched at the end."""
        return torch.stack([self.step() for _ in range(steps)]).tolist()


class Product:
    """A linear layer's matmul as autograd runs it: `forward`, or the gradient of its input (`dX`) or weight (`dW`)."""

    def __init__(self, part: str, operands: dict[str, np.ndarray], checked: int) -> None:
        x, weight, grad = (torch.from_numpy(operands[name]).to(DEVICE) for name in ("x", "weight", "grad"))
        self.checked = checked
        if part == "forward":
            self.call = lambda: F.linear(x, weight)
        else:
            wanted = {"dX": x, "dW": weight}[part].requires_grad_()
            y = F.linear(x, weight)
            self.call = lambda: torch.autograd.grad(y, wanted, grad, retain_graph=True)[0]

    def run(self, steps: int) -> list[float]:
        """The start of the diagonal of the last of so many results."""
        for _ in range(steps):
            result = self.call()
        return result.diagonal()[: self.checked].tolist()


def main() -> None:
    """Answers orders until standard input ends."""
    folder = Path(sys.argv[1])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    torch.set_num_threads(config["threads"])
    with np.load(folder / "arrays.npz") as file:
        arrays = dict(file)
    with np.load(folder / "operands.npz") as file:
        operands = dict(file)
    programs: dict[str, Program | Product] = {}
    for name, order in config["programs"].items():
        if "part" in order:
            mine = {key: operands[f"{order['operands']}/{key}"] for key in ("x", "weight", "grad")}
            programs[name] = Product(order["part"], mine, order["checked"])
        else:
            programs[name] = Program(arrays, config, order["frozen"], order["compiled"])
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps({"values": programs[order["program"]].run(order["steps"])}), flush=True)


if __name__ == "__main__":
    main()
