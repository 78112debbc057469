"""Fits what `freezejax.cost` cannot derive to compiled programs: FLOPs per element, and arrays that are live per array.

    python -m benchmarks.cost_calibration            # compiles some 90 small steps, 10 minutes on 2 CPU cores
    python -m benchmarks.cost_calibration --write    # and writes freezejax/cost/calibration.json

Matmul FLOPs, arguments and collectives are exact and need no fit. Both fits are non-negative least squares of relative
errors. The tests of the prediction use other sizes than these programs.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from scipy.optimize import least_squares, nnls

import freezejax.cost
from benchmarks.cost_programs import Case, programs

Table = dict[str, float]

_EXPECTED_ONCE = ("saved", "input", "gradient", "update", "sum")
_SHARPNESS = 60  # of the smooth maximum


def main() -> None:
    """Compiles, fits, prints the errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into the package")
    write = parser.parse_args().write
    cases, compiled = list(programs()), []
    for case in cases:
        compiled.append(case.sizes(case.lower().compile()))
        print(f"{case.name}: {compiled[-1]}", flush=True)
    flops = fit_flops(cases, [found["flops"] for found in compiled])
    memory = fit_memory(cases, [found["activation_bytes"] for found in compiled])
    tables = {"flops": flops, "memory": memory}
    if write:
        path = Path(freezejax.cost.__file__).parent / "calibration.json"
        path.write_text(json.dumps({"versions": {"jax": jax.__version__}, **tables}, indent=1) + "\n")


def fit_flops(cases: Sequence[Case], compiled: Sequence[int]) -> Table:
    """FLOPs per element of every kind."""
    steps = [case.step() for case in cases]
    names = sorted({kind for step in steps for kind, count in step.elements.items() if count})
    elements = np.array([[step.elements[name] for name in names] for step in steps], float)
    rest = np.array([flops - step.matmul_flops for flops, step in zip(compiled, steps, strict=True)], float)
    total = np.array(compiled, float)
    found = nnls(elements / total[:, None], rest / total)[0]
    _report("FLOPs", cases, (elements @ found - rest) / total)
    return _table(names, found)


def fit_memory(cases: Sequence[Case], compiled: Sequence[int]) -> Table:
    """Arrays that are live per array, by kind. A smooth maximum: they decide which point of a step is the fullest."""
    points = [case.step().points for case in cases]
    names = sorted({kind for of_step in points for point in of_step for kind, size in point.items() if size})
    most = max(len(of_step) for of_step in points)
    sizes = np.zeros((len(points), most, len(names)))
    for row, of_step in zip(sizes, points, strict=True):
        row[: len(of_step)] = [[point[name] for name in names] for point in of_step]
    sizes /= np.array(compiled, float)[:, None, None]
    start = np.array([1.0 if name.startswith(_EXPECTED_ONCE) else 2.0 if "forward" in name else 0.3 for name in names])

    def errors(found: np.ndarray) -> np.ndarray:
        live = sizes @ found
        fullest = np.sum(live**_SHARPNESS, axis=1) ** (1 / _SHARPNESS)
        return np.concatenate([fullest - 1, 1e-3 * (found - start)])

    def slopes(found: np.ndarray) -> np.ndarray:
        live = sizes @ found
        fullest = np.sum(live**_SHARPNESS, axis=1, keepdims=True) ** (1 / _SHARPNESS)
        weights = (live / fullest) ** (_SHARPNESS - 1)
        return np.vstack([np.einsum("cp,cpk->ck", weights, sizes), 1e-3 * np.eye(len(names))])

    found = least_squares(errors, start, slopes, bounds=(0, 20)).x
    _report("temporaries", cases, np.max(sizes @ found, axis=1) - 1)
    # What these programs, for one device and without microbatches, do not have.
    return {**_table(names, found), "gathered": 1.0, "sum": 1.0}


def _report(what: str, cases: Sequence[Case], errors: np.ndarray) -> None:
    worst = np.argsort(-abs(errors))[:8]
    print(f"{what}: largest error {100 * max(abs(errors)):.2f} %, rms {100 * np.sqrt(np.mean(errors**2)):.2f} %")
    for index in worst:
        print(f"  {100 * errors[index]:+.2f} %  {cases[index].name}")


def _table(names: Sequence[str], values: np.ndarray) -> Table:
    return {name: round(float(value), 4) for name, value in zip(names, values, strict=True)}


if __name__ == "__main__":
    main()
