"""Temporary memory of a program: its kernels in XLA's order, and the moment at which most is in memory."""

from collections import deque
from collections.abc import Sequence

from freezejax.cost.kernels import Kernel, fuse
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
            size = array.size * array.itemsize
            over = next((old for old in done if live[old] == size), None) if kernel.in_place else None
            if over is not None:
                done.remove(over)
                del live[over]
            live[array] = size
        inside = max((temporary_bytes(body) for part in kernel.equations for body in part.bodies), default=0)
        fullest = max(fullest, sum(live.values()) + inside)
        for array in {*done, *kernel.outputs}:
            if last.get(array, index) == index:
                live.pop(array, None)
    return fullest


def in_order(kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels as XLA's CPU compiler runs them: breadth first, each as soon as what it reads is there."""
    maker = {array: kernel for kernel in kernels for array in kernel.outputs}
    waits = {kernel: {maker[array] for array in kernel.reads if array in maker} for kernel in kernels}
    followers: dict[Kernel, list[Kernel]] = {kernel: [] for kernel in kernels}
    for kernel, needs in waits.items():
        for other in needs:
            followers[other].append(kernel)
    ready, order = deque(kernel for kernel in kernels if not waits[kernel]), list[Kernel]()
    while ready:
        order.append(ready.popleft())
        for kernel in followers[order[-1]]:
            waits[kernel].discard(order[-1])
            if not waits[kernel]:
                ready.append(kernel)
    return order
