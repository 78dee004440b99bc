"""``python -m tests.fuzz --count 10000 --seed 0``: mutate, load, and print a table by kind; exit code 1 on a fault."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from tests.fuzz.campaign import run
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="mutations in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=list(TARGETS), help="only this kind; may be repeated")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        found = run(arguments.count, arguments.seed, Path(folder), tuple(arguments.kind or ()) or None)
    for fault in found.faults:
        print(f"{fault.outcome}: {fault.kind}, case {fault.case}: {fault.detail}\n")
    print(found.table())
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
