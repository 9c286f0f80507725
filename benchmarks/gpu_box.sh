#!/usr/bin/env bash
# Measure on a machine with NVIDIA GPUs, over ssh or on the machine itself.
#
#   benchmarks/gpu_box.sh [MODEL]                  # here
#   benchmarks/gpu_box.sh MODEL user@machine       # there
#
# MODEL is a hub id or a folder on that machine; the default is Qwen/Qwen3-0.6B. The machine needs a driver for CUDA 13.
set -euo pipefail
model=${1:-Qwen/Qwen3-0.6B}
machine=${2:-}
root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
measure="python3 -m venv venv && venv/bin/pip install -q -e '.[cuda]' && nvidia-smi --query-gpu=name,driver_version,\
power.limit --format=csv && venv/bin/jaxrl-lm bench --model $model --dtype bfloat16 --num-answers 64 --num-tokens 256 \
--out bench.json --save-baseline --baselines baselines --profile profile"

if [ -z "$machine" ]; then
    folder=$(mktemp -d)
    git -C "$root" archive HEAD | tar -x -C "$folder"
    (cd "$folder" && bash -c "$measure")
    mkdir -p "$root/runs"
    cp -r "$folder/bench.json" "$folder/baselines" "$root/runs/"
else
    git -C "$root" archive HEAD | ssh "$machine" 'rm -rf jaxrl_lm_bench && mkdir jaxrl_lm_bench && tar -x -C jaxrl_lm_bench'
    ssh "$machine" "cd jaxrl_lm_bench && $measure"
    mkdir -p "$root/runs"
    scp -r "$machine:jaxrl_lm_bench/bench.json" "$machine:jaxrl_lm_bench/baselines" "$root/runs/"
fi
