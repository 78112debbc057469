"""How the processes of one run find each other: explicit flags, or what a cluster says in the environment."""

import os
import sys
import threading
from collections.abc import Mapping

import jax
from absl import flags

from freezejax.errors import UserError

flags.disclaim_key_flags()  # of the command, see cli.py


class NotJoined(Exception):
    """The processes of the run did not find each other. Nothing says that the command is wrong: they may come later."""


def define_flags() -> None:
    """Defines `--distributed`, `--coordinator`, `--num_processes`, `--process_id` and `--join_timeout`."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where the cluster does not tell.")
    flags.DEFINE_integer("num_processes", None, "Processes of the run, with --coordinator.")
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0, with --coordinator.")
    flags.DEFINE_integer("join_timeout", 300, "Seconds that the processes of a run wait for each other.", lower_bound=1)
    flags.DEFINE_enum(
        "distributed",
        "auto",
        ["auto", "on", "off"],
        "auto: as Slurm, Open MPI or a TPU pod say in the environment; on: as jax finds out; off: alone.",
    )


def start() -> None:
    """Joins the other processes of the run, if there are any. Call before anything asks for a device."""
    given = flags.FLAGS
    coordinator, count, index = given.coordinator, given.num_processes, given.process_id
    if (coordinator, count, index) == (None, None, None):
        if given.distributed == "on" or (given.distributed == "auto" and cluster(os.environ) is not None):
            _join()
        return
    if None in (coordinator, count, index):
        raise UserError("--coordinator, --num_processes and --process_id belong together: give all three")
    if count < 1:
        raise UserError(f"--num_processes={count}: expected 1 or more")
    if not 0 <= index < count:
        raise UserError(f"--process_id={index}: expected 0 to {count - 1}, for --num_processes={count}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={coordinator}: expected HOST:PORT, such as node0:12345")
    _join(coordinator_address=coordinator, num_processes=count, process_id=index)


def cluster(environment: Mapping[str, str]) -> str | None:
    """Which cluster runs this as one of several processes, if any."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")  # of srun; SLURM_NTASKS stands in the shell of sbatch, too
    if "SLURM_JOB_ID" in environment and tasks != "1":
        return "Slurm"
    if environment.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        return "Open MPI"
    return "TPU pod" if "," in environment.get("TPU_WORKER_HOSTNAMES", "") else None


def _join(**arguments: object) -> None:
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    if jax.config.jax_platforms == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    where = arguments.get("coordinator_address", "the coordinator that the environment names")
    seconds = flags.FLAGS.join_timeout
    missing = f"not all processes of the run have come to {where} within --join_timeout={seconds} seconds"

    def end() -> None:
        print(f"error: {missing}; --distributed=off runs alone", file=sys.stderr, flush=True)
        os._exit(os.EX_TEMPFAIL)  # as `cli.run` does with NotJoined

    # Ours comes first: jax waits in C++, deaf to exceptions, and its own timeout ends in an abort with a stack trace.
    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=seconds + 60)  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        kind = UserError if isinstance(error, ValueError) else NotJoined  # jax's ValueError is about the arguments
        raise kind(f"--coordinator: {where} cannot be used ({reason}); --distributed=off runs alone") from None
    finally:
        timer.cancel()
