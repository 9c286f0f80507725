#!/usr/bin/env bash
# Measure on Cloud TPUs: one host (v6e-8, v5litepod-8, ...) or all hosts of a slice.
#
#   benchmarks/tpu_vm.sh NAME ZONE [MODEL]        # an existing TPU VM or slice, by its name
#
# Create one first, and delete it afterwards, since it costs money while it exists:
#
#   gcloud compute tpus tpu-vm create NAME --zone ZONE --accelerator-type v6e-8 --version v2-alpha-tpuv6e
#   gcloud compute tpus tpu-vm create NAME --zone ZONE --accelerator-type v5litepod-16 --version v2-alpha-tpuv5-lite
#   gcloud compute tpus tpu-vm delete NAME --zone ZONE
#
# MODEL is a hub id or a folder that every host has; the default is Qwen/Qwen3-0.6B.
set -euo pipefail
name=${1:?name of the TPU VM}
zone=${2:?its zone}
model=${3:-Qwen/Qwen3-0.6B}
root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)

on() { gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker="$1" --command="$2"; }

# The committed files of this checkout, on every host.
archive=$(mktemp --suffix=.tar.gz)
git -C "$root" archive --prefix=jaxrl_lm/ --output "$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$name":jaxrl_lm.tar.gz --zone "$zone" --worker=all
on all "tar -xzf jaxrl_lm.tar.gz && python3 -m venv venv && venv/bin/pip install -q -e './jaxrl_lm[tpu]'"

hosts=$(gcloud compute tpus tpu-vm describe "$name" --zone "$zone" --format='value(networkEndpoints.len())')
if [ "$hosts" = 1 ]; then
    on 0 "cd jaxrl_lm && ../venv/bin/jaxrl-lm bench --model $model --dtype bfloat16 --num-answers 64 --num-tokens 256 \
        --out bench.json --save-baseline --baselines baselines --profile profile"
    mkdir -p "$root/runs"
    gcloud compute tpus tpu-vm scp --recurse "$name":jaxrl_lm/bench.json "$name":jaxrl_lm/baselines "$root/runs/" \
        --zone "$zone" --worker=0
else
    # bench runs in one process, and a slice needs one on each host. So a slice is measured by a run: its report has
    # tokens per second, FLOPs, and their share of the peak. The run folder must be on a disk that all hosts share.
    on all "cd jaxrl_lm && ../venv/bin/jaxrl-lm grpo --model $model --dtype bfloat16 --remat full --batch-size 256 \
        --group-size 8 --prompts jaxrl_lm/assets/dialogue/prompts.jsonl --reward words --answers.max-new-tokens 256 \
        --num-updates 10 --profile-updates 1 --out ${SHARED_FOLDER:?a folder that all hosts share}/slice \
        --hosts.coordinator auto"
fi
