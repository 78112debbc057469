"""The temporaries of a step keep their pages from one step to the next, counted as page faults of a process."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from experiments.engine import accelerators
done = accelerators.keep_freed_memory() if sys.argv[1] == "keep" else None
import jax, jax.numpy as jnp
x = jnp.ones((2048, 2048))
step = jax.jit(lambda x: jnp.sum(jnp.sin(x @ x) @ jnp.cos(x @ x)))  # two temporaries of 16 MiB at least
for _ in range(4):
    jax.block_until_ready(step(x))
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
found = []
for _ in range(8):
    before = faults()
    jax.block_until_ready(step(x))
    found.append(faults() - before)
print(done, sorted(found)[4], sum(found))
"""


def faults_per_step(mode):
    command = [sys.executable, "-c", PROGRAM, mode]
    done, median, total = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return done, int(median), int(total)


def test_a_step_faults_no_pages_in():
    done, median, _ = faults_per_step("keep")
    if done == "False":
        pytest.skip("not glibc on Linux, or jax has an accelerator")
    assert median < 500  # on a busy machine a thread may still get a new block now and then
    # The counterpart: by default all of them, in most steps; glibc's own threshold moves.
    assert faults_per_step("default")[2] > 4000


GROWTH = """
import resource, sys
from experiments.engine import accelerators
done = accelerators.keep_freed_memory()
import numpy as np
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before = resident()
blocks = [np.ones(2**17) for _ in range(100)]  # 1 MiB each
last = np.ones(2**17)  # what is above the others: the heap cannot shrink from its end
del blocks
if sys.argv[1] == "back":
    accelerators.give_freed_memory_back()
print(done, (resident() - before) // 2**20)
"""


def grown(mode):
    command = [sys.executable, "-c", GROWTH, mode]
    done, left = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return done, int(left)


def test_what_a_run_has_freed_is_given_back_after_it():
    done, left = grown("back")
    if done == "False":
        pytest.skip("not glibc on Linux, or jax has an accelerator")
    assert left < 20
    assert grown("keep")[1] > 80  # the counterpart: MiB that a process of many runs would go on holding
