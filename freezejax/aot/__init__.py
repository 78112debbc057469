"""Compiling for accelerators that are not there, and reading what the compiler made of a program."""

from freezejax.aot.hlo import Collective, collectives, sent_by_kind
from freezejax.aot.programs import Program, compile_for
from freezejax.aot.topologies import CHIPS, GIB, Chip, Topology, load, missing_packages

__all__ = [
    "CHIPS",
    "GIB",
    "Chip",
    "Collective",
    "Program",
    "Topology",
    "collectives",
    "compile_for",
    "load",
    "missing_packages",
    "sent_by_kind",
]
