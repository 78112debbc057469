#!/usr/bin/env bash
# The benchmarks that a GPU answers otherwise than a CPU, one after the other, each with its JSON in FOLDER.
#
#   python -m venv torch && torch/bin/pip install torch numpy
#   benchmarks/gpu.sh [--print] [--quick] --torch_python=torch/bin/python [--out=runs/gpu]
#
# --print shows the commands and runs none; --quick takes toy sizes: whether it runs, not what it costs.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

print=false quick=() options=()
for argument in "$@"; do
  case $argument in
    --print) print=true ;;
    --quick) quick=(--quick) ;;
    --?*) options+=("$argument") ;;
    *) refuse "unexpected argument '$argument': every option is a --flag=value" ;;
  esac
done
torch_python='' out=runs/gpu
take_options torch_python out
[ -n "$torch_python" ] || refuse "--torch_python= is missing: a Python that has numpy and torch for this GPU"
$print || [ "$(count_gpus)" -gt 0 ] || refuse "no GPU here: nvidia-smi lists none, and these figures need one"
start_python gpu

# benchmark NAME [FLAG...]
benchmark() {
  local line=("${python[@]}" -m "benchmarks.$1" "--json=$out/$1.json" "${quick[@]}" "${@:2}")
  if $print; then quoted "${line[@]}"; else "${line[@]}"; fi
}

$print || mkdir -p "$out"
benchmark mfu         # step time at the paper's sizes, and the share of the GPU's peak in it
benchmark freezing    # what freezing saves of a step
benchmark random_maps # from how many tokens on a drawn map is as fast as a stored one
benchmark phase_switch
python=(env JAX_DEFAULT_MATMUL_PRECISION=highest "${python[@]}") # PyTorch does not multiply float32 as TF32 either
benchmark step "--torch_python=$torch_python"
