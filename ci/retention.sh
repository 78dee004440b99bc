#!/usr/bin/env bash
# The retention table: every embedded task, three seeds, engine against reference and random pruning.
#   bash ci/retention.sh [DIR] [QUESTIONS]     (default retention-output, 500 held-out questions a task)
# Trains one agent per task and seed (two at a time, one thread each), builds one bundle per seed that holds all tasks'
# agents, answers the same questions with each, and writes DIR/mini-retention.md. May be run again: what is done stays.
output=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../retention-output}")
questions=${2:-500}
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

tasks=(mini-exist mini-read mini-colour mini-count mini-relation mini-compare easy-vqa)
seeds=(0 1 2)

for seed in "${seeds[@]}"; do for task in "${tasks[@]}"; do echo "$task $seed"; done; done |
    xargs -P 2 -L 1 bash -c 'toprl-export train --task "$1" --seed "$2" --budget-kept 192,64 --threads 1 \
        --output-dir "$0/seed-$2/agents/$1"' "$output"

for seed in "${seeds[@]}"; do
    agents=()
    for task in "${tasks[@]}"; do agents+=(--agent "$output/seed-$seed/agents/$task"); done
    toprl-export build "${agents[@]}" --budget-kept 192,64 --output-dir "$output/seed-$seed/bundle"
done

printf '%s\n' "${tasks[@]}" |
    OMP_NUM_THREADS=1 xargs -P 2 -I TASK python ci/retention.py "$output" --task TASK --questions "$questions"
python ci/retention.py "$output"
