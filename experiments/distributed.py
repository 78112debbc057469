"""How the processes of one run find each other: explicit flags, or what a cluster says in the environment."""

import os
from collections.abc import Mapping

import jax
from absl import flags

from freezejax.errors import UserError


def define_flags() -> None:
    """Defines `--distributed`, `--coordinator`, `--num_processes` and `--process_id`."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where the cluster does not tell.")
    flags.DEFINE_integer("num_processes", None, "Processes of the run, with --coordinator.")
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0, with --coordinator.")
    flags.DEFINE_enum("distributed", "auto", ["auto", "off"], "auto: as Slurm, Open MPI or a TPU pod say; off: alone.")


def start() -> None:
    """Joins the other processes of the run, if there are any. Call before anything asks for a device.

    Raises:
      UserError: the flags do not fit each other, or process 0 cannot be reached.
    """
    coordinator, count, index = flags.FLAGS.coordinator, flags.FLAGS.num_processes, flags.FLAGS.process_id
    if coordinator is None and count is None and index is None:
        if flags.FLAGS.distributed == "auto" and cluster(os.environ) is not None:
            _join()
        return
    if coordinator is None or count is None or index is None:
        raise UserError("--coordinator, --num_processes and --process_id belong together: give all three")
    if not 0 <= index < count:
        raise UserError(f"--process_id={index}: expected 0 to {count - 1}, for --num_processes={count}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--coordinator={coordinator}: expected HOST:PORT, such as node0:12345")
    _join(coordinator_address=coordinator, num_processes=count, process_id=index)


def cluster(environment: Mapping[str, str]) -> str | None:
    """Which cluster runs this as one of several processes, if any.

    >>> cluster({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}), cluster({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"})
    ('Slurm', None)
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
    if "SLURM_JOB_ID" in environment and tasks != "1":
        return "Slurm"
    if environment.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        return "Open MPI"
    return "TPU pod" if "," in environment.get("TPU_WORKER_HOSTNAMES", "") else None


def _join(**arguments: object) -> None:
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    if jax.config.jax_platforms == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**arguments)  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:
        where = arguments.get("coordinator_address", "the coordinator that the environment names")
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise UserError(f"--coordinator: {where} cannot be reached ({reason}); --distributed=off runs alone") from None
