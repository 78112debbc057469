"""Freezing on a pod: what the compilers for 8 and 256 H100s and 256 TPU v5e make of the plan's step.

A frozen kernel is gathered in both passes and never reduced, a seeded one neither. Counterpart: freezing in the
optimizer alone, which reduces as much as full training.
"""

import json

import pytest

from benchmarks import pod

LAYERS, WIDTH, HIDDEN = pod.QUICK.num_layers, pod.QUICK.model_dim, round(pod.QUICK.mlp_mult * pod.QUICK.model_dim)
FULL, FROZEN, SEEDED, RECIPE = pod.FORMS
DOWN, ALL = LAYERS, 3 * LAYERS  # kernels of the MLP's shape


CASES = [case for case in pod.CASES if not case.topology.startswith("h100") or case.data == 1]  # time is short


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def found(request, start, tmp_path_factory):
    """The four forms of a step on one pod, and the pod."""
    if missing := pod.aot.missing_packages(request.param.topology):
        pytest.skip(f"{' and '.join(missing)} missing: install the preflight extra")
    path = tmp_path_factory.mktemp("pod") / "found.json"
    ended = start("benchmarks.pod", "--quick", f"--case={request.param.name}", f"--json={path}")
    assert ended.returncode == 0, ended.stderr
    return {row["form"]: row for row in json.loads(path.read_text())["rows"]}, request.param


def gathered(row):
    return row["mlp_kernels"].get("all-gather", 0)


def scattered(row):
    return row["mlp_kernels"].get("reduce-scatter", 0)


def test_frozen_kernels_are_gathered_in_both_passes_and_never_reduced(found):
    rows, _ = found
    assert gathered(rows[FROZEN]) == gathered(rows[FULL]) == 2 * ALL
    assert (scattered(rows[FULL]), scattered(rows[FROZEN])) == (ALL, DOWN)


def test_seeded_kernels_are_neither_gathered_nor_reduced(found):
    rows, _ = found
    assert gathered(rows[SEEDED]) == 2 * DOWN
    assert scattered(rows[SEEDED]) == DOWN


def test_counterpart_freezing_in_the_optimizer_reduces_everything(found):
    rows, _ = found
    assert scattered(rows[RECIPE]) == ALL
    assert rows[RECIPE]["reduced_bytes"] == pytest.approx(rows[FULL]["reduced_bytes"], rel=0.01)


def test_devices_sum_in_float32_although_they_compute_in_bfloat16(found):
    rows, _ = found
    assert all(row["reduced_dtypes"] == ["f32"] for row in rows.values())


def test_what_freezing_saves_is_the_gradients_of_gate_and_up_to_the_byte(found):
    """No gradient hides in an array of another shape: compilers join small ones before they exchange them."""
    rows, case = found
    kernels = 2 * LAYERS * WIDTH * HIDDEN
    scatter = 4 * kernels * (case.fsdp - 1) / case.fsdp  # float32
    reduce = 2 * 4 * kernels / case.fsdp * (case.data - 1) / case.data
    assert rows[FULL]["reduced_bytes"] - rows[FROZEN]["reduced_bytes"] == pytest.approx(scatter + reduce, rel=0.001)
    assert rows[FROZEN]["reduced_bytes"] == pytest.approx(rows[SEEDED]["reduced_bytes"], rel=0.001)
    gather = 2 * 2 * kernels * (case.fsdp - 1) / case.fsdp  # bfloat16, both passes
    assert rows[FROZEN]["gathered_bytes"] == rows[FULL]["gathered_bytes"]
    assert rows[FULL]["gathered_bytes"] - rows[SEEDED]["gathered_bytes"] == pytest.approx(gather, rel=0.001)


def test_the_page_quotes_the_committed_figures():
    committed = json.loads(pod.RESULTS.read_text(encoding="utf-8"))
    page = pod.PAGE.read_text(encoding="utf-8")
    assert pod.fill(page, committed) == page
    assert pod.write_table(committed) in page
