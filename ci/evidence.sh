#!/usr/bin/env bash
# The evidence on the embedded tasks: rivals tuned on training questions, agents of three seeds beside every baseline,
# and the four analyses.
#   bash ci/evidence.sh [DIR] [QUESTIONS]     (default evidence-output, 1000 held-out questions a task)
# Takes about eight hours on two idle cores (estimated from its parts: tuning and comparison two and a quarter each,
# training one and a half, analyses two). May be run again after any interruption: what is done stays. Leaves DIR/agents/RECIPE/seed-N/TASK, DIR/comparison and
# DIR/analysis. For a trial, variables take less: TASKS, RECIPES and SEEDS are lists, BUDGETS has commas, TUNE is the
# number of training questions a task, TRAIN holds further flags of train, ANALYSES= leaves the analyses out.
output=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../evidence-output}")
questions=${2:-1000}
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

read -ra tasks <<<"${TASKS:-mini-exist mini-read mini-colour mini-count mini-relation mini-compare easy-vqa}"
read -ra recipes <<<"${RECIPES:-toprl toprl-text toprl-paper supervised}"
read -ra seeds <<<"${SEEDS:-0 1 2}"
export output budgets=${BUDGETS:-192,64,32} TRAIN=${TRAIN:-}
compare=(--tasks "$(IFS=,; echo "${tasks[*]}")" --budget-kept "$budgets" --tune "${TUNE:-240}" --limit "$questions"
    --jobs 2 --output-dir "$output/comparison")

step() { echo "== $(date +%H:%M:%S) $*" >&2; }

step "rivals: their schedules by training questions, then their answers to the held-out ones"
toprl-export compare "${compare[@]}" --iterations 0

step "agents: ${recipes[*]}; seeds ${seeds[*]}"
# The budgets compared are all in the plans, so that an agent whose reward decides how much it keeps prunes as its other
# seeds do.
for recipe in "${recipes[@]}"; do for seed in "${seeds[@]}"; do for task in "${tasks[@]}"; do
    echo "$recipe $seed $task"
done; done; done |
    xargs -P 2 -L 1 bash -c 'toprl-export train --recipe "$1" --seed "$2" --task "$3" --budget-kept "$budgets" \
        --threads 1 $TRAIN --output-dir "$output/agents/$1/seed-$2/$3"' train

step "comparison"
agents=()
for recipe in "${recipes[@]}"; do agents+=("$recipe=$output/agents/$recipe/seed-*/*"); done
toprl-export compare "${compare[@]}" --agents "${agents[@]}"
python -m toprl_export.comparison.recompute "$output/comparison" >/dev/null

if [ -n "${ANALYSES-all}" ]; then
    step "analyses"
    analysis=(--jobs 2 --output-dir "$output/analysis")
    toprl-export analyze transfer --agents "$output/agents/toprl/seed-*/*" --budget-kept 64 --limit 300 "${analysis[@]}"
    toprl-export analyze cliff --limit 300 "${analysis[@]}"
    toprl-export analyze sensitivity --limit 100 "${analysis[@]}"
    toprl-export analyze ablate --tasks mini-count,mini-exist --seeds 0,1 --budget-kept 64 --limit 500 "${analysis[@]}"
fi
step "done: $output"
