#!/usr/bin/env bash
# The retention table: every embedded task, three seeds, engine against reference and random pruning.
#   bash ci/retention.sh [DIR] [QUESTIONS]     (default retention-output, 500 held-out questions a task)
# Trains one agent per task and seed (two at a time, one thread each), builds one bundle per seed that holds all tasks'
# agents, validates every task on it, and writes DIR/mini-retention.md and .json. May be run again: what is done stays.
output=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../retention-output}")
questions=${2:-500}
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

tasks=(mini-exist mini-read mini-colour mini-count mini-relation mini-compare easy-vqa)
seeds=(0 1 2)
export output questions

train_one() {
    toprl-export train --task "$1" --seed "$2" --budget-kept 192,64 --threads 1 \
        --output-dir "$output/seed-$2/agents/$1"
}

validate_one() {
    [ -f "$output/seed-$2/reports/$1/report.json" ] && return
    # Speed is measured elsewhere, alone on the machine; here the gates ask for accuracy only.
    local code=0
    toprl-export validate "$output/seed-$2/bundle" --task "$1" --seed "$2" --limit "$questions" --threads 1 \
        --warmup 0 --iterations 1 --min-retention 192=0.97,64=0.9 --must-beat-random \
        --report-dir "$output/seed-$2/reports/$1" || code=$?
    [ "$code" -le 1 ]
}
export -f train_one validate_one

pairs() {
    local task seed
    for seed in "${seeds[@]}"; do for task in "${tasks[@]}"; do echo "$task $seed"; done; done
}

pairs | xargs -P 2 -L 1 bash -c 'train_one "$0" "$1"'
for seed in "${seeds[@]}"; do
    agents=()
    for task in "${tasks[@]}"; do agents+=(--agent "$output/seed-$seed/agents/$task"); done
    toprl-export build "${agents[@]}" --budget-kept 192,64 --output-dir "$output/seed-$seed/bundle"
done
# One at a time for a bundle: validate stamps its manifest.
printf '%s\n' "${seeds[@]}" | xargs -P 2 -I SEED bash -c \
    'set -e; for task in '"${tasks[*]}"'; do validate_one "$task" SEED; done'
python ci/retention_table.py "$output"
