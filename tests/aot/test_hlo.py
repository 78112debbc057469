"""Collectives are read as each compiler writes them; each case is a line that a compiler wrote, shortened."""

import pytest

from freezejax.aot import Collective, collectives, sent_by_kind

GROUPS = "replica_groups=mesh['data'=2,'fsdp'=8,'tensor'=1] {'fsdp'}"
SOURCE = 'metadata={op_name="jit(step)/jvp()/dot" stack_frame_id=7}'
LINES = {
    "CPU gather": (
        "%g = bf16[64,12]{1,0} all-gather(%a), replica_groups=[2,8]<=[16], dimensions={0}",
        [("all-gather", "bf16", (64, 12), 8)],
    ),
    "gathers combined": (
        f"%g = (f32[64,12]{{1,0}}, f32[8]{{0}}) all-gather(%a, %b), {GROUPS}, dimensions={{0}}",
        [("all-gather", "f32", (64, 12), 8), ("all-gather", "f32", (8,), 8)],
    ),
    "GPU start of one": (
        f"%g = ((bf16[8,12]{{0,1}}), bf16[64,12]{{0,1}}) all-gather-start(%a), {GROUPS}, dimensions={{0}}",
        [("all-gather", "bf16", (64, 12), 8)],
    ),
    "GPU start of many": (
        "%g = ((f32[8,12]{1,0}, /*index=1*/bf16[1]{0}), (f32[64,12]{1,0}, bf16[8]{0})) all-gather-start(%a, %b), "
        f"{GROUPS}, dimensions={{0}}",
        [("all-gather", "f32", (64, 12), 8), ("all-gather", "bf16", (8,), 8)],
    ),
    "scatter": (
        f"%s = f32[64,3]{{1,0}} reduce-scatter(%a), {GROUPS}, dimensions={{1}}, to_apply=%add",
        [("reduce-scatter", "f32", (64, 24), 8)],
    ),
    "GPU start of scatters": (
        "%s = ((f32[64,24]{1,0}, f32[8]{0}), (f32[8,24]{1,0}, f32[1]{0})) reduce-scatter-start(%a, %b), "
        f"{GROUPS}, dimensions={{0}}, to_apply=%add",
        [("reduce-scatter", "f32", (64, 24), 8), ("reduce-scatter", "f32", (8,), 8)],
    ),
    "reduce": (
        "%r = f32[5]{0} all-reduce(%a), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add",
        [("all-reduce", "f32", (5,), 4)],
    ),
    "start of reduces, results alone": (
        f"%r = (f32[5]{{0}}, f32[]) all-reduce-start(%a, %b), {GROUPS}, to_apply=%add",
        [("all-reduce", "f32", (5,), 8), ("all-reduce", "f32", (), 8)],
    ),
    "start of reduces, with operands": (
        f"%r = ((f32[5]{{0}}), f32[5]{{0}}) all-reduce-start(%a), {GROUPS}, to_apply=%add",
        [("all-reduce", "f32", (5,), 8)],
    ),
    "TPU start of a permutation": (
        "%p = (bf16[128,32]{1,0:T(8,128)(2,1)S(1)}, bf16[128,32]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) "
        "collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}",
        [("collective-permute", "bf16", (128, 32), 16)],
    ),
    "groups over all": ("%r = s8[5]{0} all-reduce(%a), replica_groups={}", [("all-reduce", "s8", (5,), 16)]),
    "groups over part of an axis": (
        "%r = f32[5]{0} all-reduce(%a), replica_groups=mesh['data'=2,'fsdp'=8] {'data','fsdp':(1)4}",
        [("all-reduce", "f32", (5,), 8)],
    ),
    "a done is no second one": ("%d = f32[64,12]{1,0} all-gather-done(%g)", []),
    "nor is what reads it": ("%t = f32[8]{0} get-tuple-element(%all-gather.1), index=1", []),
}


def program(*lines, before=""):
    body = "\n".join(f"  {line}, {SOURCE}" for line in lines)
    return f"HloModule jit_step, num_partitions=16\n\n{before}ENTRY %main (p: f32[2]) -> f32[2] {{\n{body}\n}}\n"


@pytest.mark.parametrize("case", LINES)
def test_every_way_to_write_a_collective(case):
    line, expected = LINES[case]
    source = "jit(step)/jvp()/dot"
    assert collectives(program(line)) == [Collective(*fields, times=1, source=source) for fields in expected]


GATHER = "%g = bf16[64,12]{1,0} all-gather(%a), replica_groups={}, dimensions={0}"


def computation(name, *lines):
    return f"%{name} (q: f32[2]) -> f32[2] {{\n" + "\n".join(f"  {line}" for line in lines) + "\n}\n\n"


def test_a_loop_counts_as_often_as_it_runs_and_nests():
    loop = 'condition=%test, body=%{}, backend_config={{"known_trip_count":{{"n":"{}"}}}}'
    inner, outer = computation("inner", GATHER), computation("outer", "%w = () while(%q), " + loop.format("inner", 3))
    text = program("%w = () while(%p), " + loop.format("outer", 4), GATHER, before=inner + outer)
    assert sorted(found.times for found in collectives(text)) == [1, 12]
    assert sent_by_kind(collectives(text)) == {"all-gather": 13 * (64 * 12 * 2) * 15 // 16}


def test_what_a_fusion_calls_counts_once_and_what_nobody_calls_not_at_all():
    text = program(
        "%f = ((f32[]), f32[]) fusion-start(%p), kind=kCustom, calls=%fused",
        "%e = f32[] fusion-done(%f), calls=%fused",
        before=computation("fused", GATHER) + computation("dead", GATHER),
    )
    assert [found.times for found in collectives(text)] == [1]


def test_a_fusion_that_names_itself_counts_as_often_as_others_call_it():
    """As libtpu 0.0.50.1 writes the lookup of an embedding."""
    offloaded = "ROOT %o = f32[2] fusion(%q), kind=kCustom, calls=%fused"
    text = program("%f = f32[2] fusion(%p), calls=%fused", before=computation("fused", GATHER, offloaded))
    assert [found.times for found in collectives(text)] == [1]


def test_a_gather_that_the_tpu_spreads_over_fusions_is_one():
    chained = GATHER + ', channel_id=8, frontend_attributes={chain_id="0"}'
    start = computation("start", chained, '%s = () custom-call(%g), custom_call_target="AsyncCollectiveStart"')
    step, done = computation("step", chained), computation("done", chained)
    calls = [f"%f.{name} = f32[] fusion(%p), calls=%{name}" for name in ("start", "step", "done")]
    assert len(collectives(program(*calls, before=start + step + done))) == 1


def test_a_reduction_that_the_tpu_slices_at_once_is_a_scatter():
    reduce = "%r = f32[64,12]{1,0} all-reduce(%q), replica_groups={}, to_apply=%add"
    text = program(
        "%f = f32[4,12] fusion(%p), calls=%all-reduce-scatter.3", before=computation("all-reduce-scatter.3", reduce)
    )
    assert [(found.kind, found.shape) for found in collectives(text)] == [("reduce-scatter", (64, 12))]


def test_bytes_on_a_ring():
    sent = {
        kind: Collective(kind, "f32", (16, 2), 8, 3, "").sent for kind in ("all-gather", "reduce-scatter", "all-reduce")
    }
    assert sent == {"all-gather": 3 * 112, "reduce-scatter": 3 * 112, "all-reduce": 3 * 224}
    assert Collective("collective-permute", "bf16", (16, 2), 8, 1, "").sent == 64
    assert Collective("all-reduce", "f32", (16,), 1, 1, "").sent == 0
