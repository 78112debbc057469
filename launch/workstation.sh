#!/usr/bin/env bash
# Starts a study on this machine, on whatever accelerator it has.
#
#   launch/workstation.sh [--print] STUDY SCALE WORKDIR [FLAG...]
#   launch/workstation.sh progressive h100 runs/progressive --config.data.path=fineweb10B_sp1024
#
# --print shows the command and does not run it.
set -euo pipefail
cd "$(dirname "$0")/.."

print=false
if [ "${1:-}" = "--print" ]; then print=true; shift; fi
if [ $# -lt 3 ]; then
  echo "usage: launch/workstation.sh [--print] STUDY SCALE WORKDIR [FLAG...]" >&2
  exit 2
fi
study=$1 scale=$2 workdir=$3
shift 3
if [ ! -f "experiments/configs/$study.py" ]; then
  echo "error: there is no study '$study'; studies: $(cd experiments/configs && ls [a-z]*.py | sed 's/\.py$//' | tr '\n' ' ')" >&2
  exit 2
fi

extra=()
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi --list-gpus >/dev/null 2>&1; then
  extra=(--extra cuda12)
elif [ -e /dev/accel0 ] || [ -e /dev/vfio/0 ]; then
  extra=(--extra tpu)
fi

command=(uv run ${extra[@]+"${extra[@]}"} python -m "experiments.$study"
  "--config=experiments/configs/$study.py:$scale" "--workdir=$workdir" "$@")
if $print; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
