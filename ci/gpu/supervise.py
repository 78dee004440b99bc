"""Runs one check's process and gathers what it left, however it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ci.gpu.record import Case, CheckResult
from toprl_export.errors import UserError

LOG_CHARACTERS = 12_000
ENDING_SECONDS = 10


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
        return CheckResult(name, "failed", f"its process ended with {_ending(code)}", spent, cases, text)
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


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children, which share a session of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # the driver may hold a process whose kernel never ends
        process.wait(timeout=ENDING_SECONDS)
