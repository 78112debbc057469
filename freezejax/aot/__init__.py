"""Compiling for accelerators that are not attached, and reading what the compiler made of a program."""

from freezejax.aot.hlo import Collective, collectives, sent_by_kind
from freezejax.aot.programs import CompiledProgram, compile_for
from freezejax.aot.topologies import Topology, load, missing_packages
from freezejax.chips import CHIPS, GIB, Chip

__all__ = [
    "CHIPS",
    "GIB",
    "Chip",
    "Collective",
    "CompiledProgram",
    "Topology",
    "collectives",
    "compile_for",
    "load",
    "missing_packages",
    "sent_by_kind",
]
