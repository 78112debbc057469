"""Compiles the steps of `grid.meshes` for 8 simulated devices and prints what XLA says of them, as JSON."""

import json

import jax

from freezejax.aot import collectives, sent_by_kind
from tests.cost.grid import meshes

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    found = {}
    for case in meshes():
        program = case.lower().compile()
        found[case.name] = {**case.sizes(program), "sent": sent_by_kind(collectives(program.as_text()))}
    print(json.dumps(found))
