#!/usr/bin/env bash
# Every check that needs a CUDA GPU, in at most eight minutes: bash ci/gpu.sh [OUTPUT] [--quick] [--only NAME,NAME]
# Installs nothing: it takes the machine's own Python (PYTHON=..., .venv where there is one, else python3) and says
# what could not run. Leaves report.md, report.json and log.txt in OUTPUT (default: $OUT, else gpu-report).
# Without a GPU, the same code with small shapes: bash ci/gpu.sh gpu-report --device cpu --quick
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
output=${OUT:-gpu-report}
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    output=$1
    shift
fi
output=$(realpath -m "$output")

python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && [ -x "$repository/.venv/bin/python" ]; then
    python=$repository/.venv/bin/python
fi
cd "$repository"
PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m ci.gpu "$output" "$@"
