"""A hybrid model and its gradient on meshes of 8 devices, with plain experts and with other weights there."""

import json
import os

import numpy as np

SIZES = {"vocab_size": 16, "num_layers": 1, "pattern": "E", "model_dim": 16, "num_heads": 2, "num_kv_heads": 2} | {
    "head_dim": 8, "mamba_heads": 2, "mamba_head_dim": 8, "mamba_groups": 2, "state_dim": 4, "chunk": 4,
    "mlp_width": 16, "experts": 3, "expert_choices": 2, "expert_width": 8, "shared_expert_width": 8,
}  # fmt: skip
TOKENS = np.arange(8 * 12, dtype=np.int32).reshape(8, 12) % 16
WAYS = {
    "plain": [],
    "maps with LoRA": [
        {"pattern": ".*/experts/.*", "kind": "map"},
        {"pattern": ".*/experts/.*", "kind": "lora", "rank": 2},
    ],
}


def main() -> None:
    """Prints of every way and mesh the loss alone and together, the largest difference of a gradient, and gathers."""
    import jax

    from freezejax import models
    from freezejax.sharding import Layout, make_mesh

    found = {}
    for name, rules in WAYS.items():
        hybrid = SIZES | {"num_layers": 4, "pattern": "ME*-", "experts": 4}
        model = models.build("nemotron_h", **hybrid, weights=rules)
        params = model.init(jax.random.key(0))

        def loss(params, tokens, model=model):
            return model.apply(params, tokens, targets_BxT=tokens).mean()

        alone, wanted = jax.jit(jax.value_and_grad(loss, allow_int=True))(params, TOKENS)
        not_divided = [] if rules else [(1, 1, 1, 8)]  # 8 devices for 4 experts: each has all of them
        for sizes in ((8, 1, 1), (1, 4, 2), *not_divided):
            layout = Layout(make_mesh(*sizes), model.abstract_params(), model.sharding)
            spread = jax.device_put(params, layout.shardings(params))
            at_use = jax.value_and_grad(lambda p, t, of=layout: loss(of.at_use(p), t), allow_int=True)
            program = jax.jit(at_use).lower(spread, jax.device_put(TOKENS, layout.batch)).compile()
            together, gradients = program(spread, jax.device_put(TOKENS, layout.batch))
            pairs = zip(jax.tree.leaves(wanted), jax.tree.leaves(gradients), strict=True)
            apart = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs if a.dtype == np.float32)
            found[f"{name}, {sizes}"] = float(alone), float(together), apart, program.as_text().count(" all-gather(")
    print(json.dumps(found))


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    main()
