#!/usr/bin/env bash
# Starts a study on this node of 8 GPUs: one process that uses all of them. launch/slurm.sh and launch/gke.sh run it on
# every node; flags say which process this is where the cluster does not.
#
#   launch/node.sh [--print] STUDY SCALE WORKDIR [--FLAG=VALUE...]
#   launch/node.sh progressive h100x8 /data/runs/progressive --config.data.path=/data/fineweb10B_sp1024
#   launch/node.sh ... --coordinator=node0:12345 --num_processes=2 --process_id=0   # and 1 on the other node
#
# --print shows the command and does not run it. docs/launch.md tells more.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

parse_arguments "$@"
refuse_options
# On Slurm jax takes one process per GPU for granted and would use GPU 0 alone.
gpu_environment+=("JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7")
if ! $print && [ "${JAX_PLATFORMS:-}" != cpu ] && [ "$(count_gpus)" -ne 8 ]; then
  refuse "this node has $(count_gpus) GPUs, not 8: launch/workstation.sh takes what is there"
fi
study_command gpu
start "${command[@]}"
