"""What a check is given: where to run, how long it may take, and where its cases go."""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ci.gpu.record import Case, CaseStatus

Work = Callable[[], Mapping[str, float]]


class NotRun(Exception):
    """A case cannot run here; the message says why."""


class Wrong(Exception):
    """A case ran and what it found is not right; ``figures`` are what it found."""

    def __init__(self, why: str, figures: Mapping[str, float]) -> None:
        super().__init__(why)
        self.figures = figures


@dataclass(frozen=True)
class Context:
    """One check's surroundings.

    Attributes:
        device: "cuda" or "cpu".
        quick: take small shapes.
        deadline: of ``time.monotonic``; cases that would begin later are recorded as not run.
        cases: file to which each case is appended as one line of JSON, so that a crash loses only the case it hit.
        scratch: an empty directory of the check's own.
        without_kernel: why our kernel must not be called, because it brought a process down; empty where it may.
    """

    device: str
    quick: bool
    deadline: float
    cases: Path
    scratch: Path
    without_kernel: str = ""

    @property
    def seconds_left(self) -> float:
        """Until the deadline."""
        return self.deadline - time.monotonic()

    def measure(self, table: str, name: str, work: Work) -> bool:
        """Do one piece of work and record its figures, whatever becomes of it.

        Args:
            table: the case's table.
            name: the case's name.
            work: returns the figures; raises `NotRun` or `Wrong` where that is what it finds.

        Returns:
            whether it is ok.
        """
        if self.seconds_left <= 0:
            self.record(Case(table, name, "not run", "no time was left for it"))
            return False
        self.record(case := _attempt(table, name, work))
        return case.status == "ok"

    def prepare(self, table: str, name: str, work: Callable[[], object]) -> bool:
        """Like `measure`, for work that has no figures: recorded only where it is not ok."""
        if self.seconds_left <= 0:
            self.record(Case(table, name, "not run", "no time was left for it"))
            return False

        def silent() -> Mapping[str, float]:
            work()
            return {}

        case = _attempt(table, name, silent)
        if case.status != "ok":
            self.record(case)
        return case.status == "ok"

    def record(self, case: Case) -> None:
        """Append a case."""
        with self.cases.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(case), allow_nan=False) + "\n")
        figures = ", ".join(f"{key} {value:.4g}" for key, value in case.figures.items())
        print(f"{case.table} | {case.name}: {case.status} {case.why} {figures}".rstrip(), flush=True)


def _attempt(table: str, name: str, work: Work) -> Case:
    status: CaseStatus
    try:
        return Case(table, name, figures=dict(work()))
    except (NotRun, ModuleNotFoundError) as error:
        status, why, figures = "not run", one_line(error), {}
    except Wrong as error:
        status, why, figures = "failed", one_line(error), dict(error.figures)
    except Exception as error:  # noqa: BLE001  # one case's error must not cost the others
        if type(error).__name__ == "OutOfMemoryError":
            status, why, figures = "not run", "too little device memory", {}
        else:
            traceback.print_exc()
            status, why, figures = "failed", f"{type(error).__name__}: {one_line(error)}", {}
    _free_memory()
    return Case(table, name, status, why, figures)


def one_line(error: object) -> str:
    """The first line of a message, not too long."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def _free_memory() -> None:
    """Give back what a failed case held, for the next one."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
