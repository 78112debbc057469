"""Reads the collectives out of a compiled program's text (`compiled.as_text()`), from the CPU, GPU or TPU compiler.

Each compiler writes them in its own way: combined over many arrays, split into a start and a done, wrapped into
fusions, inside loops. What is counted is what a device does in one step.
"""

import ast
import collections
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute", "collective-broadcast")

_BITS = {"pred": 8, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8}  # of types whose name does not end in its bits
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \([^\n]*\) -> [^\n]*\{\n(.*?)^\}$", re.MULTILINE | re.DOTALL)
_INSTRUCTION = re.compile(rf"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALL = re.compile(
    r"\b(?:calls|body|condition|to_apply|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"?known_trip_count"?[:=]\s*\{"n":"(\d+)"')


class Collective(NamedTuple):
    """One array that the devices of a group exchange.

    >>> gather = Collective("all-gather", "bf16", (768, 2304), 8, 1, "jit(step)/jvp()")
    >>> gather.nbytes, gather.sent
    (3538944, 3096576)
    """

    kind: str  # one of KINDS
    dtype: str
    shape: tuple[int, ...]  # of the whole array: gathered, or not yet scattered
    group: int  # devices that exchange it
    times: int  # per step, where it stands in a loop
    source: str  # what the program calls the operation; "" if it says nothing

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array, each time."""
        bits = _BITS.get(self.dtype) or int(re.sub(r"\D", "", self.dtype) or 32)
        return math.prod(self.shape) * bits // 8

    @property
    def sent(self) -> int:
        """Bytes that one device sends per step where the group is a ring; a permutation sends the array once."""
        passes = {"all-reduce": 2, "collective-permute": 0, "collective-broadcast": 0}.get(self.kind, 1)
        share = passes * (self.group - 1) / self.group if passes else 1.0
        return round(self.times * self.nbytes * share)


def collectives(text: str) -> list[Collective]:
    """Every array that a compiled program exchanges, in the order of the text.

    >>> collectives('''HloModule m, num_partitions=4
    ... ENTRY %main (p: f32[2,3]) -> f32[8,3] {
    ...   ROOT %g = f32[8,3]{1,0} all-gather(%p), replica_groups=[1,4]<=[4], dimensions={0}
    ... }''')
    [Collective(kind='all-gather', dtype='f32', shape=(8, 3), group=4, times=1, source='')]
    """
    devices = int(_first(r"num_partitions=(\d+)", text, "1")) * int(_first(r"replica_count=(\d+)", text, "1"))
    computations = {"ENTRY" if found[1] else found[2]: found[3].splitlines() for found in _COMPUTATION.finditer(text)}
    times = _executions(computations)
    return [
        collective
        for name, lines in computations.items()
        for line in lines
        if times[name] and not _repeats_a_started_one(line, lines)
        for collective in _exchanged(line, name, times[name], devices)
    ]


def sent_by_kind(found: Iterable[Collective]) -> dict[str, int]:
    """Bytes that one device sends per step, by kind.

    >>> sent_by_kind([Collective("all-reduce", "f32", (6,), 4, 2, "")] * 2)
    {'all-reduce': 144}
    """
    total = collections.Counter[str]()
    for collective in found:
        total[collective.kind] += collective.sent
    return dict(total)


def _exchanged(line: str, computation: str, times: int, devices: int) -> Iterator[Collective]:
    """The arrays of the collective in a line, if there is one."""
    if not (match := _INSTRUCTION.match(line)):
        return
    kind = "reduce-scatter" if computation.startswith("all-reduce-scatter") else match[2]
    group = _group_size(line, devices)
    source = _first(r'op_name="((?:[^"\\]|\\.)*)"', line, "").replace("\\'", "'")
    results = _parse_type(match[1])
    # A start returns (operands, results, ...); only an all-reduce's may be the results alone.
    if match[3] and isinstance(results, list) and (match[2] != "all-reduce" or isinstance(results[0], list)):
        results = results[1]
    for dtype, sizes in results if isinstance(results, list) else [results]:
        shape = list(sizes)
        if match[2] == "reduce-scatter":
            shape[int(_first(r"dimensions=\{(\d+)", line, "0"))] *= group
        yield Collective(kind, dtype, tuple(shape), group, times, source)


def _executions(computations: dict[str, list[str]]) -> dict[str, int]:
    """How often a step runs each computation: once per caller, times the loop's count. A branch counts as taken."""
    callers: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
    for name, lines in computations.items():
        for line in lines:
            if "-done(" in line or "-update(" in line:  # what the start has called
                continue
            trips = int(_first(_TRIPS, line, "1")) if " while(" in line else 1
            for called in re.findall(r"%?([\w.\-]+)", " ".join(_CALL.findall(line))):
                if called in computations and called != name:  # the TPU compiler lets a custom fusion name itself
                    callers[called].append((name, trips))
    times = {"ENTRY": 1}

    def count(name: str) -> int:
        if name not in times:
            times[name] = sum(count(caller) * trips for caller, trips in callers[name])
        return times[name]

    return {name: count(name) for name in computations}


def _repeats_a_started_one(line: str, lines: list[str]) -> bool:
    # The TPU compiler spreads one gather over several fusions and writes it out in each: a chain. The first starts it.
    return "chain_id=" in line and not any("AsyncCollectiveStart" in other for other in lines)


def _group_size(line: str, devices: int) -> int:
    text = line.partition("replica_groups=")[2]
    if match := re.match(r"\[\d+,(\d+)\]<=", text):
        return int(match[1])
    if match := re.match(r"mesh\[(.*?)\] \{(.*?)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if match := re.match(r"\{\{([\d,]+)\}", text):
        return match[1].count(",") + 1
    return devices


def _parse_type(text: str) -> Any:
    """`(f32[2]{0}, (s8[]))` -> `[("f32", [2]), [("s8", [])]]`."""
    plain = re.sub(r"/\*.*?\*/|\{[^}]*\}", "", text)  # without comments and layouts
    nested = plain.replace("(", "<").replace(")", ">")
    typed = re.sub(r"(\w+)(\[[\d,]*\])", r'("\1", \2)', nested)
    return ast.literal_eval(typed.replace("<", "[").replace(">", "]"))


def _first(pattern: str | re.Pattern[str], text: str, default: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else default
