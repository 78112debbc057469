#!/usr/bin/env bash
# Makes the committed results again: runs what has not run yet, then writes every table, page and picture.
#
#   bash results/make.sh                       # all of them, about 33 hours on one CPU core
#   bash results/make.sh progressive fineweb   # one study on one text
#   bash results/make.sh amplitude python      # one study of a model that is pretrained on the books
#   bash results/make.sh freeze_except puzzles # the one of a hybrid model
#   bash results/make.sh domains smollm2       # the one of SmolLM2-135M, which it fetches
#   bash results/make.sh pages                 # tables, pages and pictures alone, in a minute
#
# In the folder of the checkout there must be `gutenberg`, with Project Gutenberg 11, 84, 1342 and 1661 as .txt, and
# `fineweb_sample/sp1024`, with shards of FineWeb; git ignores both. Runs go into $RUNS (default: runs), where they go
# on after a stop. Prose of README.md and results/README.md is written by hand, the effects and verdicts in it are not.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${RUNS:-runs}
python=${PYTHON:-uv run python}
declare -A path=([gutenberg]=gutenberg [fineweb]=fineweb_sample/sp1024)

study() { # NAME TEXT
  local out=results/$1/$2 workdir=$runs/$1/$2
  $python -m "experiments.$1" --config="experiments/configs/$1.py:cpu" --config.data.path="${path[$2]}" --workdir="$workdir"
  mkdir -p "$out"
  cp "$workdir"/{config.json,summary.json,report.html} "$out"
}

tuned() { # NAME: a study of a base that is pretrained on the books and fine-tuned on the Python reference
  local out=results/$1/python workdir=$runs/$1/python some=()
  if [[ $1 == redundancy ]]; then some=('--config.parts=matrices,types,cumulative,bottom'); fi # the paper's
  $python -m "experiments.$1" --config="experiments/configs/$1.py:cpu" --config.base.data.path=gutenberg \
    "${some[@]}" --workdir="$workdir"
  mkdir -p "$out"
  cp "$workdir"/{config.json,summary.json,report.html} "$out"
  for file in claims.json amplitudes.md matrices.md matrices.svg measured.svg diagnostics.json; do
    if [[ -f $workdir/$file ]]; then cp "$workdir/$file" "$out"; fi
  done
}

puzzles() {
  local out=results/freeze_except/puzzles workdir=$runs/freeze_except/puzzles
  $python -m experiments.freeze_except --config=experiments/configs/freeze_except.py:cpu --workdir="$workdir"
  mkdir -p "$out"
  cp "$workdir"/{config.json,summary.json,report.html} "$workdir"/forgetting*.{json,md,svg} "$out"
}

domains() {
  local out=results/domains/smollm2 workdir=$runs/domains/smollm2
  bash launch/get_smollm2.sh
  $python -m experiments.domains --config=experiments/configs/domains.py:smollm2 \
    --config.base.path=smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
    --config.others="books=${path[gutenberg]},fineweb=${path[fineweb]}" --workdir="$workdir"
  mkdir -p "$out"
  cp "$workdir"/{config.json,summary.json,report.html} "$workdir"/forgetting*.{json,md,svg} "$out"
}

frontier() { # STACK_TEXT, or STACK_TEXT and the one whose search it takes
  local scale=cpu text=${1#*_} workdir=$runs/frontier/$1 out=results/frontier/$1 searched=()
  if [[ $1 == golf_* ]]; then scale=cpu_golf; fi
  if [[ $# == 2 ]]; then searched=(--config.search="results/frontier/$2/search.json"); fi
  $python -m experiments.frontier --config="experiments/configs/frontier.py:$scale" --config.data.path="${path[$text]}" \
    "${searched[@]}" --workdir="$workdir"
  mkdir -p "$out"
  cp "$workdir/frontier.json" "$out"
  for part in search report; do
    if [[ -f $workdir/$part/summary.json ]]; then cp "$workdir/$part/summary.json" "$out/$part.json"; fi
  done
}

pages() {
  local summaries cells='' command
  for file in results/*/*/summary.json; do
    $python -m experiments.markdown --summary="$file" >"${file%summary.json}tables.md"
  done
  for cell in geglu_gutenberg geglu_fineweb golf_fineweb golf_gutenberg; do
    if [[ -f results/frontier/$cell/frontier.json ]]; then cells+=${cells:+,}results/frontier/$cell/frontier.json; fi
  done
  $python -m experiments.fronts --cells="$cells" >results/frontier/fronts.md
  $python -m experiments.fronts --cells="$cells" --picture=docs/images/frontier.svg
  command=$(grep -o 'experiments.markdown .*--picture=docs/images/tradeoff.svg.*' results/README.md)
  # shellcheck disable=SC2086 # it is one command of many words
  $python -m $command
  mkdir -p results/artifact_size
  $python -m experiments.artifact_size --out=results/artifact_size/claims.json
  summaries=$(find results -name summary.json -o -name claims.json -o -name forgetting_power.json | sort | paste -sd,)
  command="experiments.claims --summaries=$summaries"
  {
    sed "/^uv run/s|experiments.claims .*|$command|; /^[0-9]* figures: /,\$d" results/claims.md
    # shellcheck disable=SC2086
    $python -m $command
  } >results/claims.md.new
  mv results/claims.md.new results/claims.md
  {
    sed '/ rows, ours beside /,$d' results/sources.md
    $python -m experiments.sources
  } >results/sources.md.new
  mv results/sources.md.new results/sources.md
  $python -m experiments.quotes
}

case $# in
  0)
    for text in gutenberg fineweb; do
      for name in progressive selective adapters correction distillation ensemble; do study $name $text; done
    done
    tuned amplitude
    tuned crystallization
    tuned redundancy
    puzzles
    domains
    frontier geglu_gutenberg
    frontier golf_fineweb
    frontier geglu_fineweb geglu_gutenberg
    frontier golf_gutenberg golf_fineweb
    ;;
  1) [[ $1 == pages ]] || { echo "usage: bash results/make.sh [STUDY TEXT | STUDY python | freeze_except puzzles | domains smollm2 | pages]" >&2; exit 2; } ;;
  *)
    if [[ $1 == frontier ]]; then
      frontier "${@:2}"
    elif [[ $1 == freeze_except ]]; then
      puzzles
    elif [[ $1 == domains ]]; then
      domains
    elif [[ $2 == python ]]; then
      tuned "$1"
    else
      study "$1" "$2"
    fi
    ;;
esac
pages
