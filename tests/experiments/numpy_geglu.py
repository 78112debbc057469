"""The GEGLU model with adapted weights a second time, in numpy: what the package's figures are compared with.

Every formula is that of its paper, read off the fields of a weight by hand; random maps and few levels have tests of
their own, and are taken as the matrices they are.
"""

import numpy as np
from scipy.special import erf, log_softmax

from freezejax.ties import untie

ROTATED, ROPE_BASE, EPS = 16, 1e4, 1e-6


def product(weight, x):
    """[N, in] -> [N, out] of a weight of any kind."""
    at = lambda name: np.asarray(getattr(weight, name), np.float64)  # noqa: E731
    matrix = lambda inner: product(inner, np.eye(inner.shape[0]))  # noqa: E731
    kind = type(weight).__name__
    if kind == "MapWeight":
        return x @ np.asarray(weight.materialize(), np.float64)
    if kind == "LowBitWeight":
        gain = at("gain")
        return x @ (np.asarray(weight.materialize(), np.float64) / gain) @ np.diag(gain)
    if not hasattr(weight, "base"):
        return x @ np.asarray(weight, np.float64)
    below = product(weight.base, x)
    if kind == "LoraWeight":
        return below + x @ at("a") @ at("b") * weight.alpha / weight.a.shape[1]
    if kind == "DoraWeight":
        turned = matrix(weight.base) + at("a") @ at("b") * weight.alpha / weight.a.shape[1]
        return x @ (turned / np.sqrt(np.sum(turned**2, axis=0, keepdims=True))) @ np.diag(at("magnitude"))
    if kind == "VeraWeight":
        if weight.scalars:
            between = np.diag(at("d") * at("g")) / len(weight.d)
            return below + x @ matrix(weight.a) @ between @ matrix(weight.b)
        return below + x @ matrix(weight.a) @ np.diag(at("d")) @ matrix(weight.b) @ np.diag(at("g"))
    if kind == "RandLoraWeight":
        a, blocks = matrix(weight.a), np.split(matrix(weight.b), len(weight.lambdas))
        terms = zip(at("gammas"), at("lambdas"), blocks, strict=True)
        return below + sum(x @ np.diag(gamma) @ a @ np.diag(lam) @ b for gamma, lam, b in terms)
    if kind == "SupermaskWeight":
        return x @ (matrix(weight.base) * (at("scores") > 0))
    shift = at("shift") if kind == "ScaleShiftWeight" else 0.0
    return below @ np.diag(np.broadcast_to(at("beta" if kind == "ScalarWeight" else "gain"), below.shape[-1:])) + shift


def losses(params, tokens, targets, heads):
    """Negative log likelihoods [B, T] in nats of a model with separate q, k and v."""
    params = untie(params)
    flat = lambda weight, x: product(weight, x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)  # noqa: E731
    table = np.asarray(params["tok_emb"]["embedding"], np.float64)
    x = table[tokens]
    for block in params["blocks"].values():
        normed, attn = _norm(x, block["ln1"]["scale"]), block["attn"]
        q, k, v = (flat(attn[name]["kernel"], normed).reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for name in "qkv")
        scores = _rotated(q) @ _rotated(k).swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
        mixed = np.exp(log_softmax(scores, axis=-1)) @ v
        x = x + flat(attn["out"]["kernel"], mixed.swapaxes(1, 2).reshape(x.shape))
        normed, mlp = _norm(x, block["ln2"]["scale"]), block["mlp"]
        gate, up = (flat(mlp[name]["kernel"], normed) for name in ("gate", "up"))
        y = flat(mlp["down"]["kernel"], _gelu(gate) * up)
        if "correction" in mlp:
            y = y + flat(mlp["correction"]["b"]["kernel"], _gelu(flat(mlp["correction"]["a"]["kernel"], normed)))
        x = x + y
    logits = _norm(x, params["ln_f"]["scale"]) @ table.T
    return -np.take_along_axis(log_softmax(logits, axis=-1), targets[..., None], axis=-1)[..., 0]


def _norm(x, scale):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPS) * np.asarray(scale, np.float64)


def _gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def _rotated(x):
    half = ROTATED // 2
    angle = np.outer(np.arange(x.shape[-2]), ROPE_BASE ** (-np.arange(half) / half))
    x1, x2, rest = np.split(x, (half, ROTATED), axis=-1)
    return np.concatenate(
        [x1 * np.cos(angle) - x2 * np.sin(angle), x2 * np.cos(angle) + x1 * np.sin(angle), rest], axis=-1
    )
