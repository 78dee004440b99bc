"""One check in a process of its own: the parent's side, which supervises it, and the child's, which runs it.

The child is ``python -m ci.gpu.process MODULE:FUNCTION --cases FILE --scratch DIR --device D --seconds S``.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ci.gpu.context import MISSING, Context, one_line
from ci.gpu.report import Case, CheckResult
from toprl_export.errors import UserError

LOG_CHARACTERS = 12_000
EXIT_SECONDS = 10
"""How long a killed process may take to be gone."""
STACKS_AFTER = 1.2
"""By this multiple of its time a check should long have ended: the stacks of its threads go to the log."""


def run_supervised(
    name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float, scratch: Path
) -> CheckResult:
    """Run a check until it ends or its time is over.

    Args:
        name: of the check.
        command: its process, which appends its cases to ``scratch/cases.jsonl``.
        folder: to run in.
        environment: of the process.
        seconds: after which it is killed, with everything it started.
        scratch: an existing directory; gets ``log.txt``.
    """
    started = time.monotonic()
    log = scratch / "log.txt"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end_group(process)
    spent = round(time.monotonic() - started, 1)
    text = log.read_text(encoding="utf-8", errors="replace")[-LOG_CHARACTERS:]
    cases = read_cases(scratch / "cases.jsonl")
    if code is None:
        return CheckResult(name, "out of time", f"stopped after {seconds:.0f} s", spent, cases, text)
    if code != 0:
        return CheckResult(name, "failed", f"its process ended with {_exit_of(code)}", spent, cases, text)
    return CheckResult(name, "finished", "", spent, cases, text)


def read_cases(path: Path) -> tuple[Case, ...]:
    """The cases in a file of JSON lines; a last line that a crash cut off is left out."""
    if not path.exists():
        return ()
    cases = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            # Our own process wrote it; the typed reader would need a package that may be missing here.
            cases.append(Case(**json.loads(line)))
        except (ValueError, TypeError, UserError):
            break
    return tuple(cases)


def _exit_of(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children, which share a session of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # the driver may hold a process whose GPU kernel never ends
        process.wait(timeout=EXIT_SECONDS)


def main() -> None:
    """Run the check; what it recorded before an error ends the process is in the file."""
    parser = argparse.ArgumentParser(description="Run one check.")
    parser.add_argument("check", metavar="MODULE:FUNCTION", help="is given a `Context`")
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--quick", action="store_true")
    found = parser.parse_args()
    # On a crash, and shortly before the process is killed for lateness, every thread's stack goes to the log.
    faulthandler.enable()
    faulthandler.dump_traceback_later(found.seconds * STACKS_AFTER)
    deadline = time.monotonic() + found.seconds
    run_check(found.check, Context(found.device, found.quick, deadline, found.cases, found.scratch))


def run_check(target: str, context: Context) -> None:
    """Import a check and run it; what is missing on this machine is a case that was not run."""
    module, _, function = target.partition(":")
    try:
        getattr(importlib.import_module(module), function)(context)
    except MISSING as error:
        context.record(Case("whole check", function, "not run", one_line(error)))


if __name__ == "__main__":
    main()
