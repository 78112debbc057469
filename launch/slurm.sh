#!/usr/bin/env bash
# Submits a study to Slurm: nodes of 8 GPUs, one process on each. The checkout, WORKDIR and the data must be in a file
# system that all nodes see.
#
#   launch/slurm.sh [--print] [--SBATCH_OPTION=VALUE...] STUDY SCALE WORKDIR [--FLAG=VALUE...]
#   launch/slurm.sh --nodes=2 --time=04:00:00 --partition=gpu progressive h100x8 /shared/runs/progressive
#
# --print shows the sbatch command and does not run it. docs/launch.md tells more.
set -euo pipefail
# Slurm runs a copy of this file, in the folder that --chdir names; the first argument tells.
[ "${1:-}" = --in-job ] || cd "$(dirname "$0")/.."
source launch/common.sh
usage_options="[--SBATCH_OPTION=VALUE...] "
# Not uv: all nodes would change one environment at once.
export FREEZEJAX_PYTHON=${FREEZEJAX_PYTHON:-$PWD/.venv/bin/python}

submit() {
  parse_arguments "$@"
  local arguments=("$study" "$scale" "$workdir" "${flags[@]}")
  local submission=(
    sbatch --job-name="$study" --nodes=1 --ntasks-per-node=1 --gpus-per-node=8 --exclusive
    --requeue --open-mode=append # after a lost node or a preemption Slurm starts the job again
    --signal=TERM@300            # to the processes, 5 minutes before the time limit: they save a checkpoint and end
    --output="$workdir/slurm-%j.log" --chdir="$PWD"
    "${options[@]}" # the last one wins
    "$PWD/launch/slurm.sh" --in-job "${arguments[@]}"
  )
  if ! $print; then
    command -v "$FREEZEJAX_PYTHON" >/dev/null || refuse "$FREEZEJAX_PYTHON is missing: make it once, as docs/launch.md says"
    command -v sbatch >/dev/null || refuse "sbatch is missing: this is no Slurm machine; --print shows the command"
    check_flags
    mkdir -p "$workdir" || refuse "WORKDIR is '$workdir': it cannot be made"
  fi
  start "${submission[@]}"
}

in_job() {
  local code=0
  # When one process has ended the others get 2 minutes to do so too, and not a signal at once: they may be saving.
  # No binding: it would give a node's one task one core.
  srun --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=0 --wait=120 launch/node.sh "$@" || code=$?
  # 143: stopped by SIGTERM with a checkpoint. scancel ends this shell as well, so that it does not come to this line.
  if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$code"
}

if [ "${1:-}" = --in-job ]; then
  shift
  in_job "$@"
else
  submit "$@"
fi
