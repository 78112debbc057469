#!/usr/bin/env bash
# The benchmarks that a GPU answers otherwise than a CPU, one after the other, each with its JSON in FOLDER.
#
#   benchmarks/gpu.sh [--print] [--quick] [--torch_python=torch/bin/python] [--out=runs/gpu] [--wheels=FOLDER]
#
# --print shows the commands and runs none; --quick takes toy sizes: whether it runs, not what it costs. The last
# benchmark compares with PyTorch, in a Python that has torch and numpy; without one it is left out.
# Without a network: FREEZEJAX_PYTHON names a Python that has jax for this GPU, flax, optax, orbax and chex, and
# FOLDER (build/wheels) what benchmarks/wheels.sh has collected elsewhere. JAX_PLATFORMS=cpu tries it without a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

print=false quick=() options=()
for argument in "$@"; do
  case $argument in
    --print) print=true ;;
    --quick) quick=(--quick) ;;
    --help | -h) show_help "$PWD/benchmarks/gpu.sh" ;;
    --?*) options+=("$argument") ;;
    *) refuse "unexpected argument '$argument': every option is a --flag=value" ;;
  esac
done
torch_python=${FREEZEJAX_PYTHON:-} out=runs/gpu wheels=build/wheels
take_options torch_python out wheels
device=(--require_accelerator) peak=()
if [ "${JAX_PLATFORMS:-}" = cpu ]; then
  device=() peak=(--hardware=h100) # the share of a peak that is not there, to see that it runs
elif ! $print && [ "$(count_gpus)" -eq 0 ]; then
  refuse "no GPU here: nvidia-smi lists none, and these figures need one"
fi
start_python gpu

# Unpacks the wheels of packages that the Python lacks: a wheel is a zip of what stands in site-packages. That needs
# neither pip nor uv, nor a change of the Python. -> python, with the folder in its path.
if [ -n "${FREEZEJAX_PYTHON:-}" ] && [ -d "$wheels" ]; then
  if ! $print; then
    rm -rf "$out/packages"
    mkdir -p "$out/packages"
    "$FREEZEJAX_PYTHON" - "$wheels" "$out/packages" <<'PYTHON' || refuse "--wheels=$wheels: cannot be used, see above"
import importlib.metadata
import pathlib
import sys
import zipfile

tags = f"-cp{sys.version_info.major}{sys.version_info.minor}-", "-abi3-", "-none-any."
unpacked = []
for wheel in sorted(pathlib.Path(sys.argv[1]).glob("*.whl")):
    name = wheel.name.split("-")[0]
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if not any(tag in wheel.name for tag in tags):
            sys.exit(f"{wheel.name} is for another version of Python; see --python= of benchmarks/wheels.sh")
        with zipfile.ZipFile(wheel) as content:
            content.extractall(sys.argv[2])
        unpacked.append(name)
print("From wheels:", *unpacked, flush=True)
PYTHON
  fi
  python=(env "PYTHONPATH=$out/packages${PYTHONPATH:+:$PYTHONPATH}" "${python[@]}")
fi

# benchmark NAME [FLAG...]
benchmark() {
  local line=("${python[@]}" -m "benchmarks.$1" "--json=$out/$1.json" "${device[@]}" "${quick[@]}" "${@:2}")
  if $print; then quoted "${line[@]}"; else "${line[@]}"; fi
}

$print || mkdir -p "$out"
benchmark mfu "${peak[@]}" # step time at the paper's sizes, and the share of the GPU's peak in it
benchmark freezing         # what freezing saves of a step
benchmark random_maps      # from how many tokens on a drawn map is as fast as a stored one
benchmark phase_switch
if $print || "${torch_python:-false}" -c 'import numpy, torch' 2>/dev/null; then
  # PyTorch does not multiply float32 as TF32 either.
  python=(env JAX_DEFAULT_MATMUL_PRECISION=highest "${python[@]}")
  benchmark step "--torch_python=${torch_python:-PYTHON_WITH_TORCH}"
else
  echo "note: '${torch_python:-}' has no torch: the comparison with PyTorch is left out; --torch_python= names another" >&2
fi
