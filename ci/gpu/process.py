"""Runs one check: ``python -m ci.gpu.process MODULE:FUNCTION --cases FILE --scratch DIR --device D --seconds S``."""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import sys
import time
import traceback
from pathlib import Path

from ci.gpu.context import MISSING, Context, one_line
from ci.gpu.record import Case

LATE = 1.2
"""By this multiple of its time a check should long have ended."""


def main() -> int:
    """0 when the check came to its end, else 1; whatever it recorded before is in the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("check", metavar="MODULE:FUNCTION", help="is given a `Context`")
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--quick", action="store_true")
    found = parser.parse_args()
    # Of a crash, or of what goes on shortly before the process is stopped, the log then has every thread's stack.
    faulthandler.enable()
    faulthandler.dump_traceback_later(found.seconds * LATE)
    deadline = time.monotonic() + found.seconds
    return run_check(found.check, Context(found.device, found.quick, deadline, found.cases, found.scratch))


def run_check(target: str, context: Context) -> int:
    """Import a check and run it; what is missing on this machine is a case that was not run."""
    module, _, function = target.partition(":")
    try:
        getattr(importlib.import_module(module), function)(context)
    except MISSING as error:
        context.record(Case("whole check", function, "not run", one_line(error)))
    except Exception:  # noqa: BLE001  # the process answers by its exit code and the log
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
