"""Readers of compiled and lowered programs."""

import math
import re

import jax

KINDS = "all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all"
COLLECTIVE = re.compile(rf"= \(?(\w+)\[([\d,]*)\]\S* ({KINDS})")


def _sizes(text):
    return [int(size) for size in re.findall(r"\d+", text)]


def largest_array(hlo):
    """Elements of the largest array that the text of a compiled program names."""
    return max(math.prod(_sizes(shape)) for shape in re.findall(r"\w+\[([\d,]+)\]", hlo))


def largest_constant(text):
    """Elements of the largest constant in the text of a compiled program, or of a StableHLO module."""
    compiled = re.findall(r"\b[a-z]\w{1,12}\[([\d,]*)\]\S* constant\(", text)
    lowered = re.findall(r"stablehlo\.constant dense.*: tensor<((?:\d+x)*)\w+>", text)
    return max((math.prod(_sizes(shape)) for shape in compiled + lowered), default=0)


def collectives(hlo):
    """`(dtype, elements, kind)` of every collective of a compiled program."""
    return [(dtype, math.prod(_sizes(shape)), kind) for dtype, shape, kind in COLLECTIVE.findall(hlo)]


def memory(function, *args):
    """Bytes of `(arguments, temporaries)` of the compiled function."""
    found = jax.jit(function).lower(*args).compile().memory_analysis()
    return found.argument_size_in_bytes, found.temp_size_in_bytes
