#!/usr/bin/env bash
# Style, types and import rules. Every check runs; fails if any failed.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

failed=0
ruff check . || failed=1
ruff format --check . || failed=1
mypy || failed=1
lint-imports || failed=1
exit "$failed"
