#!/usr/bin/env bash
# Style, types, import rules and the documentation's links. Every check runs; fails if any failed.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

failed=0
ruff check . || failed=1
ruff format --check . || failed=1
mypy || failed=1
lint-imports || failed=1
site=$(mktemp -d)
mkdocs build --quiet --strict --site-dir "$site" || failed=1
rm -rf "$site"
exit "$failed"
