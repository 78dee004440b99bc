"""Checks as ``ci/gpu.sh`` runs them, that behave in implementations a test wants."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from ci.gpu.context import Context, NotRun, WrongResult


def fine(context: Context) -> None:
    """Two cases, one of which cannot run."""
    context.measure("numbers", "three", lambda: {"value": 3.0})
    context.measure("numbers", "missing", _missing)


def mixed(context: Context) -> None:
    """A case that raises, one that finds something wrong, and one that is fine."""
    context.measure("numbers", "raises", lambda: {"value": 1 / 0})
    context.measure("numbers", "wrong", _wrong)
    context.measure("numbers", "after", lambda: {"value": 5.0})


def killed(context: Context) -> None:
    """Records one case, then dies as a process does that the system kills."""
    context.measure("numbers", "before", lambda: {"value": 1.0})
    with context.cases.open("a") as stream:
        stream.write('{"table": "numbers", "name": "cut o')
    os.kill(os.getpid(), signal.SIGKILL)


def endless(context: Context) -> None:
    """Records one case and the id of a process of its own, then never ends."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    context.measure("numbers", "child", lambda: {"pid": float(child.pid)})
    time.sleep(600)


def needs_a_package(context: Context) -> None:
    """Imports what nobody has."""
    import a_package_that_nobody_has  # noqa: F401


def _missing() -> dict[str, float]:
    raise NotRun("this machine has no such thing")


def _wrong() -> dict[str, float]:
    raise WrongResult("4 is not 5", {"value": 4.0})
