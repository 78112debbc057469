#!/usr/bin/env bash
# Collects what benchmarks/gpu.sh needs on a machine without a network, besides jax for its GPU, flax, optax, orbax and
# chex: wheels in one folder, to be copied there with the repository. About 22 MiB.
#
#   benchmarks/wheels.sh [--print] [--python=3.12] [--out=build/wheels]
#
# It needs uv, a network, and the processor and system of that machine; --python= is the version of its Python. pyarrow
# (50 MiB) is left out: TensorFlow Datasets asks for it and uses it in no format that stands here.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

print=false options=()
for argument in "$@"; do
  case $argument in
    --print) print=true ;;
    --help | -h) show_help "$PWD/benchmarks/wheels.sh" ;;
    --?*) options+=("$argument") ;;
    *) refuse "unexpected argument '$argument': every option is a --flag=value" ;;
  esac
done
version=3.12 out=build/wheels
take_options python out
[[ ${python:-$version} =~ ^3\.[0-9]+$ ]] || refuse "--python=${python:-}: expected a version, such as 3.12"
version=${python:-$version}
packages=(grain array-record ml-collections tensorflow-datasets tensorboardx brotli zstandard sentencepiece)
left_out=(numpy pyarrow)
resolve=(uv pip compile --quiet - --constraint requirements.lock --python-version "$version" --no-annotate --no-header)
resolve+=("${left_out[@]/#/--no-emit-package=}" --output-file "$out/wheels.txt")
# pip, because uv downloads no wheels; one of the packages has none, and pip makes it.
collect=(uv run --quiet --no-project --python "$version" --with pip python -m pip wheel --quiet --quiet --no-deps)
collect+=(--requirement "$out/wheels.txt" --wheel-dir "$out")
if $print; then
  quoted "${resolve[@]}"
  quoted "${collect[@]}"
  exit
fi
command -v uv >/dev/null || refuse "uv is missing: it resolves and collects the packages"
mkdir -p "$out"
printf '%s\n' "${packages[@]}" | "${resolve[@]}"
"${collect[@]}"
du -sh "$out"
