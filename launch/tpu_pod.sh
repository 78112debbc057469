#!/usr/bin/env bash
# Starts a study on every host of a TPU pod, through gcloud. The checkout must be on every host, in the same folder, and
# WORKDIR and the data in a file system that all of them see.
#
#   launch/tpu_pod.sh [--print] --name=TPU --zone=ZONE [--checkout=FOLDER] STUDY SCALE WORKDIR [--FLAG=VALUE...]
#   launch/tpu_pod.sh --name=pod --zone=us-west4-a progressive v5e /mnt/shared/runs/progressive
#
# --print shows the gcloud command and does not run it. docs/launch.md tells more.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
usage_options="--name=TPU --zone=ZONE [--checkout=FOLDER] "

parse_arguments "$@"
name='' zone='' checkout=freezejax # in the home folder
take_options name zone checkout
need name zone
need_absolute_workdir "in a file system that all hosts see"
# on: a TPU host knows of the others by its metadata server, not by its environment.
remote=(launch/workstation.sh "$study" "$scale" "$workdir" --distributed=on "${flags[@]}")
if ! $print; then
  command -v gcloud >/dev/null || refuse "gcloud is missing: install the Google Cloud CLI; --print shows the command"
  check_flags
fi
start gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" --worker=all "--command=cd $(quoted "$checkout") && $(quoted "${remote[@]}")"
