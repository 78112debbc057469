#!/usr/bin/env bash
# Starts a study on Google Kubernetes Engine: fills in launch/gke.yaml and applies it.
#
#   launch/gke.sh [--print] --image=IMAGE --claim=CLAIM [--mount=/shared] [--nodes=1] [--name=STUDY] [--restarts=8]
#                 STUDY SCALE WORKDIR [--FLAG=VALUE...]
#   launch/gke.sh --image=REGISTRY/freezejax --claim=filestore --nodes=2 progressive h100x8 /shared/runs/progressive
#
# --print shows the manifest and applies nothing. docs/launch.md tells more.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
usage_options="--image=IMAGE --claim=CLAIM [--mount=FOLDER] [--nodes=N] [--name=NAME] [--restarts=N] "

# YAML's double quotes; and Kubernetes would fill in $(NAME).
quote() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "${text//\$(/\$\$(}"
}

render() {
  local manifest arguments='' argument address="$name-0.$name:12345"
  manifest=$(<launch/gke.yaml)
  for argument in "$study" "$scale" "$workdir" "${flags[@]}"; do
    arguments+="            - $(quote "$argument")"$'\n'
  done
  if [ "$nodes" -gt 1 ]; then # pod 0 is the coordinator
    arguments+="            - --coordinator=$address"$'\n'"            - --num_processes=$nodes"$'\n'
    arguments+="            - --process_id=\$(PROCESS_ID)"$'\n'
    arguments+="            - --join_timeout=3600"$'\n' # seconds: a node pool may have to grow first
  fi
  manifest=${manifest//@ARGUMENTS@/"${arguments%$'\n'}"}
  manifest=${manifest//@NAME@/"$name"}
  manifest=${manifest//@NODES@/"$nodes"}
  manifest=${manifest//@RESTARTS@/"$restarts"}
  manifest=${manifest//@IMAGE@/"$image"}
  manifest=${manifest//@MOUNT@/"$mount"}
  manifest=${manifest//@CLAIM@/"$claim"}
  printf '%s\n' "$manifest"
}

parse_arguments "$@"
image='' claim='' mount=/shared nodes=1 name=${study//_/-} restarts=8
take_options image claim mount nodes name restarts
need image claim
need_count nodes
need_count restarts
[[ $name =~ ^[a-z]([-a-z0-9]{0,50}[a-z0-9])?$ ]] || refuse "--name=$name: expected lower-case letters, digits and dashes"
for value in "$image" "$claim" "$mount"; do
  [[ $value =~ ^[A-Za-z0-9._/:@-]+$ ]] || refuse "'$value': expected letters, digits and ._/:@-"
done
[[ $mount == /* && $workdir == "$mount"/* ]] || refuse "WORKDIR is '$workdir': expected a folder under --mount=$mount"
if $print; then
  render
else
  command -v kubectl >/dev/null || refuse "kubectl is missing; --print shows the manifest"
  check_flags
  render | kubectl apply -f -
fi
