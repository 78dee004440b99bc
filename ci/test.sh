#!/usr/bin/env bash
# All tests that need no GPU. Arguments go to pytest: bash ci/test.sh tests/core -k registry
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

python -m pytest "$@"
