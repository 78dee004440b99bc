#!/usr/bin/env bash
# The whole pipeline on the embedded model: bash ci/demo.sh [DIR]   (default demo-output)
# Leaves DIR/agents/TASK, DIR/engines/TASK and DIR/report/report.json; may be run again over its own output.
output=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../demo-output}")
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

task=mini-colour
toprl-export train --task "$task" --budget-kept 192,64 --output-dir "$output/agents/$task" --overwrite
toprl-export build --agent "$output/agents/$task" --budget-kept 192,64 --engine onnx \
    --output-dir "$output/engines/$task" --overwrite

gate=0
toprl-export validate "$output/engines/$task" --task "$task" --min-retention 192=0.97,64=0.9 --must-beat-random \
    --report-dir "$output/report" || gate=$?
if [ "$gate" -le 1 ]; then
    echo "report: $output/report/report.json"
fi
exit "$gate"
