"""Whether a measure of matrices is said to tell what freezing them costs: by rule."""

import numpy as np

from experiments import diagnostics


def test_a_measure_that_orders_the_costs_is_said_to_predict_and_noise_is_not():
    rng = np.random.default_rng(0)
    cost = {f"L{i}_x": float(value) for i, value in enumerate(rng.normal(size=40))}
    rows = [{"name": name, "delta_pct": value} for name, value in cost.items()]
    measured = {name: {"truth": value**3, "noise": float(rng.normal())} for name, value in cost.items()}
    (told,) = diagnostics.predictions({"rows": rows}, measured)
    assert told.endswith("truth predicts it.")
    later = {"moved": {name: [value - 1, value + 1] for name, value in cost.items()}}
    (more,) = diagnostics.predictions({"rows": rows}, measured, later)
    assert "moved +1.00 [" in more
    assert more.endswith("truth, moved predict it.")
    widths = [text.split("noise ")[1].split("; ")[0].split(". By")[0] for text in (told, more)]
    assert widths[0] != widths[1]  # of one test more
    turned = {name: {"noise": values["noise"]} for name, values in measured.items()}
    assert diagnostics.predictions({"rows": rows}, turned)[0].endswith("none predicts it.")
    assert diagnostics.predictions({"rows": rows[:4]}, measured) == []
