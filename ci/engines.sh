#!/usr/bin/env bash
# One engine as a CI artifact: bash ci/engines.sh TASK BUDGET ENGINE OUTPUT [FLAG ...] [-- FLAG of validate ...]
#   --precision TYPE   fp32, fp16 or bf16 (default: fp32 for onnx, fp16 for others)
#   --device DEVICE    cpu or cuda, of training and validation (default: cpu for onnx, cuda for others)
#   --agent DIR        take this agent; else OUTPUT/agents/TASK, which is trained where it is missing
#   --plugin-library F what engines/flash_attention/build.sh made, for trt (default: TensorRT computes attention)
#   --updates N        of that training (default: the recipe's)
#   --installed        take the toprl-export on PATH; else .venv is made (EXTRAS says with what, see environment.sh)
# What follows -- replaces the default gates. Trains, builds and validates; the exit code is that of validate.
# OUTPUT/passed/NAME has engine and report where every gate was met, OUTPUT/failed/NAME where one was not.
set -euo pipefail

usage() {
    echo "error: $1; usage: bash ci/engines.sh TASK BUDGET ENGINE OUTPUT [FLAG ...] [-- FLAG of validate ...]" >&2
    exit 2
}

[ $# -ge 4 ] || usage "TASK, BUDGET, ENGINE and OUTPUT are needed"
task=$1 budget=$2 engine=$3 output=$(realpath -m "$4")
shift 4
precision=fp32 device=cpu gates=(--max-logit-error 0.001 --min-overlap 0.99)
if [ "$engine" != onnx ]; then
    # In 16 bits a logit moves by more, and so does the choice between tokens of nearly equal score.
    precision=fp16 device=cuda gates=(--max-logit-error 0.25 --min-overlap 0.95)
fi
building=()
if [ "$engine" = trt ]; then
    building=(--max-batch 16) # validate asks so many questions at once
fi
gates+=(--min-retention 0.9 --must-beat-random)
agent='' installed='' training=()
while [ $# -gt 0 ]; do
    case $1 in
    --precision | --device | --agent | --updates | --plugin-library) [ $# -ge 2 ] || usage "$1 needs a value" ;;&
    --precision) precision=$2; shift 2 ;;
    --device) device=$2; shift 2 ;;
    --agent) agent=$(realpath -m "$2"); shift 2 ;;
    --updates) training+=(--updates "$2"); shift 2 ;;
    --plugin-library) building+=(--plugin-library "$(realpath -m "$2")"); shift 2 ;;
    --installed) installed=yes; shift ;;
    --) shift; gates=("$@"); break ;;
    *) usage "unknown flag $1" ;;
    esac
done

[ -n "$installed" ] || source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
name=$task-$budget-$engine-$precision
work=$output/work/$name
for earlier in passed failed work; do rm -rf "${output:?}/$earlier/$name"; done
mkdir -p "$work" "$output/passed" "$output/failed"

if [ -z "$agent" ]; then
    agent=$output/agents/$task
    if [ ! -f "$agent/agent.json" ]; then
        toprl-export train --task "$task" --budget-kept "$budget" --device "$device" --output-dir "$agent" "${training[@]}"
    fi
fi
toprl-export build --agent "$agent" --budget-kept "$budget" --engine "$engine" --precision "$precision" \
    --output-dir "$work/engine" "${building[@]}"

gate=0
toprl-export validate "$work/engine" --task "$task" --device "$device" --report-dir "$work/report" "${gates[@]}" || gate=$?
case $gate in
0) verdict=passed ;;
1) verdict=failed ;;
*) exit "$gate" ;;
esac
mv "$work" "$output/$verdict/$name"
echo "$verdict: $output/$verdict/$name"
exit "$gate"
