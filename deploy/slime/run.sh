#!/usr/bin/env bash
# Trains Qwen3-4B-Instruct-2507 or Qwen3-4B-Thinking-2507 with GRPO on τ²-bench, by slime 0.3.1, on one node of 8 GPUs.
#
#   export OPENAI_API_KEY=…          # before `ray start`: the environment actors inherit it from their node
#   ray get-auth-token --generate > /dev/null && export RAY_AUTH_MODE=token    # the cluster's token, for `ray job submit`
#   ray start --head --num-gpus 8
#   SLIME=/root/slime MODEL=/models/Qwen3-4B-Instruct-2507 deploy/slime/run.sh instruct
#   SLIME=/root/slime MODEL=/models/Qwen3-4B-Thinking-2507 deploy/slime/run.sh thinking
#
# slime's environment must have this package too: pip install -e . there. MODEL_torch_dist beside the model is slime's
# conversion of it (tools/convert_hf_to_torch_dist.py). Trainer and engines share the GPUs (--colocate).
#
# Engines that run elsewhere: ENGINES="host1:30000 host2:30000", SGLang servers of the same model, without
# --enable-memory-saver. slime reserves no GPUs for them, puts its router before them, and sends weights through NCCL; where
# that cannot reach them, add --update-weight-transport disk with a folder that both see (--update-weight-disk-dir).
# Sizes are a start for 80 GB GPUs, not tuned.
set -euo pipefail

variant=${1:?instruct or thinking}
: "${SLIME:?the checkout of slime}" "${MODEL:?the folder of the Hugging Face checkpoint}"
absolute() { (cd -- "$1" && pwd); }     # the job does not run in this directory
here=$(absolute "$(dirname -- "${BASH_SOURCE[0]}")")
SLIME=$(absolute "$SLIME")
MODEL=$(absolute "$MODEL")
data=${DATA:-slime-data}
gpus=${GPUS:-8}
megatron=${MEGATRON:-/root/Megatron-LM}

case $variant in
    instruct) turn_tokens=2048 context=32768 ;;
    thinking) turn_tokens=8192 context=49152 ;;
    *) echo "$variant: choose instruct or thinking" >&2; exit 2 ;;
esac

mkdir -p "$data"
data=$(absolute "$data")
rollout-service prepare-data --domain retail --domain airline --split train --overwrite --output "$data/train.jsonl"
rollout-service prepare-data --domain retail --split test --overwrite --output "$data/retail-test.jsonl"
rollout-service prepare-data --domain airline --split test --overwrite --output "$data/airline-test.jsonl"

# Both models have the shape and the rotary base of this file.
source "$SLIME/scripts/models/qwen3-4B-Instruct-2507.sh"

hooks=rollout_service.adapters.slime
arguments=(
    "${MODEL_ARGS[@]}"
    --hf-checkpoint "$MODEL" --ref-load "${MODEL}_torch_dist" --load "${MODEL}_slime" --save "${MODEL}_slime"
    --save-interval 20

    # Episodes: one per sample, by the service; slime keeps its rollout loop, filter and abort.
    --custom-generate-function-path $hooks.generate
    --custom-reward-post-process-path $hooks.reward_post_process
    --dynamic-sampling-filter-path $hooks.keep_informative
    --rollout-all-samples-process-path $hooks.report
    --eval-function-path $hooks.generate_rollout
    --custom-config-path "$here/$variant.yaml"

    --prompt-data "$data/train.jsonl" --input-key prompt --metadata-key metadata --rollout-shuffle
    --num-rollout 500 --rollout-batch-size 32 --over-sampling-batch-size 48 --n-samples-per-prompt 8
    --global-batch-size 256
    --rollout-max-response-len $turn_tokens --rollout-max-context-len $context --rollout-temperature 1
    --router-policy consistent_hashing      # an episode's turns stay with the engine that has its prefix

    --eval-interval 10 --n-samples-per-eval-prompt 4 --eval-max-response-len $turn_tokens --eval-temperature 0.6
    --eval-prompt-data retail-test "$data/retail-test.jsonl" airline-test "$data/airline-test.jsonl"

    --advantage-estimator grpo --eps-clip 0.2 --eps-clip-high 0.28 --entropy-coef 0.0
    --use-tis                               # corrects for tokens of older weights, by the engine's log-probs
    --optimizer adam --lr 1e-6 --lr-decay-style constant --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.98

    --tensor-model-parallel-size 2 --sequence-parallel --context-parallel-size 2
    --recompute-granularity full --recompute-method uniform --recompute-num-layers 1
    --use-dynamic-batch-size --max-tokens-per-gpu $((context / 2)) --balance-data
    --attention-dropout 0.0 --hidden-dropout 0.0 --attention-backend flash
    --accumulate-allreduce-grads-in-fp32 --attention-softmax-in-fp32

    --actor-num-nodes 1 --actor-num-gpus-per-node "$gpus"
)
if [[ -n ${ENGINES:-} ]]; then
    read -ra engines <<<"$ENGINES"
    arguments+=(--rollout-external-engine-addrs "${engines[@]}")
else
    arguments+=(--colocate --rollout-num-gpus "$gpus" --rollout-num-gpus-per-engine 1 --sglang-mem-fraction-static 0.7)
fi

environment="{\"env_vars\": {\"PYTHONPATH\": \"$SLIME:$megatron\", \"CUDA_DEVICE_MAX_CONNECTIONS\": \"1\"}}"
exec ray job submit --runtime-env-json "$environment" -- python3 "$SLIME/train.py" "${arguments[@]}"
