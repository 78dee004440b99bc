#!/usr/bin/env bash
# The evidence on the embedded tasks: agents of three seeds beside every baseline, and the four analyses.
#   bash ci/evidence.sh [DIR] [QUESTIONS]     (default evidence-output, 1000 held-out questions a task)
# Trains an agent for every recipe, seed and task (two at a time, one thread each), then answers in two processes.
# Leaves DIR/agents/RECIPE/seed-N/TASK, DIR/comparison and DIR/analysis. May be run again: what is done stays.
output=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../evidence-output}")
questions=${2:-1000}
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

tasks=(mini-exist mini-read mini-colour mini-count mini-relation mini-compare easy-vqa)
recipes=(toprl toprl-text)

for recipe in "${recipes[@]}"; do for seed in 0 1 2; do for task in "${tasks[@]}"; do
    echo "$recipe $seed $task"
done; done; done |
    xargs -P 2 -L 1 bash -c 'toprl-export train --task "$3" --seed "$2" --recipe "$1" --budget-kept 192,64 --threads 1 \
        --output-dir "$0/agents/$1/seed-$2/$3"' "$output"

agents=()
for recipe in "${recipes[@]}"; do agents+=("$recipe=$output/agents/$recipe/seed-*/*"); done
toprl-export compare --agents "${agents[@]}" --budget-kept 192,64,32 --limit "$questions" --jobs 2 \
    --output-dir "$output/comparison"

analysis=(--jobs 2 --output-dir "$output/analysis")
toprl-export analyze transfer --agents "$output/agents/toprl/seed-*/*" --budget-kept 64 --limit 300 "${analysis[@]}"
toprl-export analyze cliff --limit 300 "${analysis[@]}"
toprl-export analyze sensitivity --limit 100 "${analysis[@]}"
toprl-export analyze ablate --tasks mini-count,mini-exist --seeds 0,1 --budget-kept 64 --limit 500 "${analysis[@]}"
