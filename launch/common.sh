# shellcheck shell=bash disable=SC2034 # the scripts that source it use what its functions set
# Sourced by the scripts beside it: arguments, checks, the command of a study, and --print.
# It needs bash 4.4 and the usual small tools alone, so --print works on any machine.

here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/env.sh
source "$here/env.sh"

# One line, exit code 2: the same as the studies do with bad input.
refuse() {
  echo "error: $*" >&2
  exit 2
}

# The comment at the head of a script.
show_help() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$1"
  exit 0
}

# [--print] [--OPTION=VALUE...] STUDY SCALE WORKDIR [--FLAG=VALUE...]
# -> print, options, study, scale, workdir, flags; module and config of the study.
parse_arguments() {
  print=false options=()
  while [[ ${1:-} == -* ]]; do
    case $1 in
      --print) print=true ;;
      --help | -h) show_help "$here/$(basename "$0")" ;;
      *) options+=("$1") ;;
    esac
    shift
  done
  [ $# -ge 3 ] || refuse "usage: $0 [--print] ${usage_options:-}STUDY SCALE WORKDIR [--FLAG=VALUE...]"
  study=$1 scale=$2 workdir=$3
  shift 3
  flags=("$@")
  check_study
  [[ $workdir != -* && -n $workdir ]] || refuse "WORKDIR is '$workdir': expected a folder, such as runs/$study"
  local flag
  for flag in "${flags[@]}"; do
    [[ $flag == --?* ]] || refuse "unexpected argument '$flag' after WORKDIR: every option is a --flag=value"
    [[ $flag != --config=* && $flag != --workdir=* ]] || refuse "$flag: STUDY, SCALE and WORKDIR say that already"
  done
}

# The first lines of a config name its scales and the command that runs it.
check_study() {
  config=experiments/configs/$study.py
  [[ $study =~ ^[a-z][a-z0-9_]*$ && -f $config ]] ||
    refuse "there is no study '$study'; studies: $(basename -s .py -a experiments/configs/[a-z]*.py | paste -sd ' ' -)"
  local scales
  scales=$(sed -n '/^Scales/,/^"""/s/^  \([a-z0-9_]\{1,\}\) .*/\1/p' "$config" | paste -sd ' ' -)
  [[ " $scales " == *" $scale "* ]] || refuse "$study has no scale '$scale'; scales: $scales"
  module=$(sed -n "s/.*python -m \(experiments\.[a-z_]*\) --config=[^ ]*:$scale .*/\1/p;/^Scales/q" "$config")
  # The command of another scale, where that of this one is not named.
  [ -n "$module" ] || module=$(sed -n 's/.*python -m \(experiments\.[a-z_]*\) --config.*/\1/p;/^Scales/q' "$config")
  module=${module%%$'\n'*}
}

refuse_options() { [ ${#options[@]} -eq 0 ] || refuse "unknown option '${options[0]}' before STUDY: only --print can be there"; }

# take_options NAME...: each of the options is --NAME=VALUE of one of these; sets the variable NAME to VALUE.
take_options() {
  local option key
  for option in "${options[@]}"; do
    key=${option%%=*} key=${key#--}
    [[ " $* " == *" $key "* && $option == --*=?* ]] ||
      refuse "unknown option '$option'; before STUDY there can be: --print$(printf ' --%s=' "$@")"
    printf -v "$key" %s "${option#*=}"
  done
}

# take_options' values that have no default.
need() {
  local key
  for key in "$@"; do
    [ -n "${!key:-}" ] || refuse "--$key= is missing: $0 [--print] ${usage_options:-}STUDY SCALE WORKDIR [--FLAG=VALUE...]"
  done
}

need_count() { [[ ${!1} =~ ^[1-9][0-9]{0,4}$ ]] || refuse "--$1=${!1}: expected a number from 1 on"; }

# Clusters see another folder by a relative name.
need_absolute_workdir() { [[ $workdir == /* ]] || refuse "WORKDIR is '$workdir': expected an absolute path, $1"; }

# Lets the study read its flags before they go to a cluster, which would tell an hour later. Without a Python that has
# freezejax, as on a machine that only submits, it says that nothing was checked.
check_flags() {
  local python=${FREEZEJAX_PYTHON:-.venv/bin/python} code=0 said
  said=$(JAX_PLATFORMS=cpu "$python" -m "$module" "--config=$config:$scale" "--workdir=$workdir" "${flags[@]}" \
    --check 2>&1 >/dev/null) || code=$?
  if [ "$code" -eq 2 ]; then
    echo "$said" >&2
    exit 2
  fi
  [ "$code" -eq 0 ] || echo "note: the flags are not checked here: FREEZEJAX_PYTHON names no Python with freezejax" >&2
}

# How many GPUs the driver lists.
count_gpus() { nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true; }

# What this machine has: gpu, tpu or cpu.
accelerator() {
  if [ "$(count_gpus)" -gt 0 ]; then
    echo gpu
  elif [ -e /dev/accel0 ] || [ -e /dev/vfio/0 ]; then
    echo tpu
  else
    echo cpu
  fi
}

# start_python KIND -> python: an interpreter that has freezejax and jax for gpu, tpu or cpu, in its environment.
# $FREEZEJAX_PYTHON names one that is there already; else uv makes one.
start_python() {
  local -n environment=${1}_environment
  local -A extras=([gpu]=cuda12 [tpu]=tpu)
  python=()
  [ ${#environment[@]} -eq 0 ] || python+=(env "${environment[@]}")
  if [ -n "${FREEZEJAX_PYTHON:-}" ]; then
    python+=("$FREEZEJAX_PYTHON")
  else
    python+=(uv run ${extras[$1]:+--extra "${extras[$1]}"} python)
  fi
}

# study_command KIND -> command: the study on this machine.
study_command() {
  start_python "$1"
  command=("${python[@]}" -m "$module" "--config=$config:$scale" "--workdir=$workdir")
  # jax would train on the CPU, weeks instead of hours, where the driver and it do not agree.
  [[ $1 == cpu || ${JAX_PLATFORMS:-} == cpu ]] || command+=(--require_accelerator)
  command+=("${flags[@]}")
}

# A command as one line that can be pasted.
quoted() {
  local line
  printf -v line '%q ' "$@"
  echo "${line% }"
}

# Becomes the command, so that signals reach it; with --print shows it.
start() {
  if $print; then
    quoted "$@"
  else
    exec "$@"
  fi
}
