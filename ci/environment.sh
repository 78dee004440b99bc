# Sourced by the other scripts: changes to the repository's root and puts .venv, made where it is missing or
# out of date, first on PATH. EXTRAS names the extras in it (default: demo,dev; a GPU runner takes train,gpu,trt,dev
# with an index that has them). Pip's own settings (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, pip.conf) choose where
# packages come from, such as an index with CPU builds of torch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python_with_venv() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.11 python3.12 python3.13; do
        if "$candidate" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python >= 3.11 with venv found: install one, or name it: PYTHON=/path/to/python3 bash $0" >&2
    return 2
}

environment_stamp() {
    { cat pyproject.toml ci/constraints.txt; echo "$PWD ${EXTRAS:-demo,dev}"; } | cksum
}

prepare_environment() {
    local stamp=.venv/toprl-export.stamp python
    if [ "$(cat "$stamp" 2>/dev/null)" != "$(environment_stamp)" ]; then
        python=$(python_with_venv)
        echo "Preparing .venv (this downloads PyTorch once) …" >&2
        "$python" -m venv .venv
        .venv/bin/python -m pip install --quiet -c ci/constraints.txt hatchling editables setuptools
        .venv/bin/python -m pip install --quiet -c ci/constraints.txt --no-build-isolation -e ".[${EXTRAS:-demo,dev}]"
        environment_stamp >"$stamp"
    fi
    PATH=$PWD/.venv/bin:$PATH
}

prepare_environment
