"""Prints how far the prediction is from the compiled programs of the grid, worst first.

FREEZEJAX_WHOLE_COST_GRID=1 python -m tests.cost.errors              # one device
FREEZEJAX_WHOLE_COST_GRID=1 python -m tests.cost.errors --devices=8  # the meshes
"""

import argparse

import jax

from tests.cost import grid

QUANTITIES = ("flops", "argument_bytes", "activation_bytes")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1, choices=(1, 8))
    devices = parser.parse_args().devices
    jax.config.update("jax_num_cpu_devices", devices)
    found: dict[str, list[tuple[float, str]]] = {quantity: [] for quantity in QUANTITIES}
    for case in grid.one_device() if devices == 1 else grid.meshes():
        compiled, predicted = case.sizes(case.lower().compile()), case.as_xla_counts()
        for quantity in QUANTITIES:
            found[quantity].append((100 * (getattr(predicted, quantity) / compiled[quantity] - 1), case.name))
        print(case.name, [f"{found[quantity][-1][0]:+.2f} %" for quantity in QUANTITIES], flush=True)
    for quantity, errors in found.items():
        worst = sorted(errors, key=lambda error: -abs(error[0]))[:5]
        print(f"{quantity}, {len(errors)} programs:", ", ".join(f"{error:+.2f} % ({name})" for error, name in worst))
