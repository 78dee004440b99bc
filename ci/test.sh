#!/usr/bin/env bash
# All tests that need no GPU, in two processes of one thread each. Arguments go to pytest instead, in one process:
#   bash ci/test.sh tests/core -k registry
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if [ $# -eq 0 ]; then
    # A file's tests stay together, for they share exports and trained agents. With more threads than cores, those that
    # wait for each other would take the cores from those that compute.
    export OMP_NUM_THREADS=1
    set -- --numprocesses 2 --dist loadfile
fi
python -m pytest "$@"
