"""What a check is given: where to run, how long it may take, and where its cases go."""

from __future__ import annotations

import gc
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ci.gpu.report import Case, CaseStatus
from toprl_export.errors import MissingExtraError

Work = Callable[[], Mapping[str, float] | None]


class NotRun(Exception):
    """A case cannot run here; the message says why."""


MISSING = (NotRun, MissingExtraError, ModuleNotFoundError)
"""Errors that say that this machine lacks something, not that something is wrong."""


class WrongResult(Exception):
    """A case ran and its result is wrong; ``figures`` are what it found."""

    def __init__(self, why: str, figures: Mapping[str, float] | None = None) -> None:
        super().__init__(why)
        self.figures = figures or {}


@dataclass(frozen=True)
class Context:
    """One check's surroundings.

    Attributes:
        device: "cuda" or "cpu".
        quick: take small shapes.
        deadline: of ``time.monotonic``; cases that would begin later are recorded as not run.
        cases: file to which each case is appended as one line of JSON, so that a crash loses only the case it hit.
        scratch: an empty directory of the check's own.
    """

    device: str
    quick: bool
    deadline: float
    cases: Path
    scratch: Path

    @property
    def seconds_left(self) -> float:
        """Until the deadline."""
        return self.deadline - time.monotonic()

    def measure(self, table: str, name: str, work: Work, *, done: bool = False) -> bool:
        """Do one piece of work and record its figures, or how it failed.

        Args:
            table: the case's table.
            name: the case's name.
            work: returns figures, or None when only a failure is to be recorded; raises one of `MISSING` or
                `WrongResult` where that is what it finds.
            done: all that takes time was done before; record it after the deadline too.

        Returns:
            whether it is ok.
        """
        if done or self.seconds_left > 0:
            print(f"{table} | {name} …", flush=True)  # the last one in the log of a process that hangs
            case = _attempt(table, name, work)
        else:
            case = Case(table, name, "not run", "no time was left for it")
        if case.figures or case.status != "ok":
            self.record(case)
        return case.status == "ok"

    def record(self, case: Case) -> None:
        """Append a case."""
        with self.cases.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(case), allow_nan=False) + "\n")
        figures = ", ".join(f"{key} {value:.4g}" for key, value in case.figures.items())
        print(f"{case.table} | {case.name}: {case.status} {case.why} {figures}".rstrip(), flush=True)


def _attempt(table: str, name: str, work: Work) -> Case:
    status: CaseStatus = "failed"
    figures: Mapping[str, float] = {}
    try:
        return Case(table, name, figures=dict(work() or {}))
    except MISSING as error:
        status, why = "not run", one_line(error)
    except WrongResult as error:
        why, figures = one_line(error), {key: value for key, value in error.figures.items() if math.isfinite(value)}
    # A case runs arbitrary library code, and any error of it is its recorded result: it must not cost the other cases.
    except Exception as error:  # noqa: BLE001
        if type(error).__name__ == "OutOfMemoryError":
            status, why = "not run", "too little device memory"
        else:
            traceback.print_exc()
            why = f"{type(error).__name__}: {one_line(error)}"
    _free_memory()
    return Case(table, name, status, why, figures)


def one_line(error: object) -> str:
    """The first line of a message, at most 300 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def _free_memory() -> None:
    """Free what a failed case held, for the next one."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        with suppress(RuntimeError):  # after an illegal memory access the CUDA context refuses everything
            torch.cuda.empty_cache()
