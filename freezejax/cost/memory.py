"""Temporary memory of a program: its kernels in XLA's order, and the moment at which most is in memory."""

from collections.abc import Sequence
from graphlib import TopologicalSorter

from freezejax.cost.kernels import Kernel, fuse, stands_alone
from freezejax.cost.program import Array, FlatProgram


def temporary_bytes(program: FlatProgram) -> int:
    """Bytes that a program needs besides arguments and results, at the fullest moment."""
    kernels = in_order(fuse(program))
    last = {array: index for index, kernel in enumerate(kernels) for array in kernel.reads}
    elsewhere = {*program.inputs, *program.outputs}
    live: dict[Array, int] = {}
    fullest = 0
    for index, kernel in enumerate(kernels):
        done = [array for array in kernel.reads if array in live and last[array] == index]
        for array in set(kernel.outputs) - elsewhere:
            over = next((old for old in done if live[old] == array.nbytes), None)
            if over is not None and not any(map(stands_alone, kernel.equations)):  # it writes over an operand
                done.remove(over)
                del live[over]
            live[array] = array.nbytes
        inside = max((temporary_bytes(body) for part in kernel.equations for body in part.bodies), default=0)
        fullest = max(fullest, sum(live.values()) + inside)
        for array in {*done, *kernel.outputs}:
            if last.get(array, index) == index:
                live.pop(array, None)
    return fullest


def in_order(kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels as XLA's CPU compiler runs them: breadth first, each as soon as what it reads is there."""
    maker = {array: kernel for kernel in kernels for array in kernel.outputs}
    needs = {kernel: {maker[array] for array in kernel.reads if array in maker} for kernel in kernels}
    return list(TopologicalSorter(needs).static_order())
