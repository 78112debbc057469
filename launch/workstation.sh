#!/usr/bin/env bash
# Starts a study on this machine, on whatever accelerators it has.
#
#   launch/workstation.sh [--print] STUDY SCALE WORKDIR [--FLAG=VALUE...]
#   launch/workstation.sh progressive h100 runs/progressive --config.data.path=fineweb10B_sp1024
#
# --print shows the command and does not run it. docs/launch.md tells more.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

parse_arguments "$@"
refuse_options
study_command "$(accelerator)"
start "${command[@]}"
