"""Cells and workers that other processes can import."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toprl_export.errors import UserError
from toprl_export.evaluation.cells import CellStore, compute_cells


@dataclass(frozen=True)
class Number:
    """A cell to be squared."""

    value: int

    @property
    def identity(self) -> dict[str, object]:
        return {"number": self.value, "where": ("a", "b")}


@dataclass(frozen=True)
class OpenSquarer:
    """Makes a function that squares, and leaves a note of each cell; 13 is refused, 666 ends the process."""

    notes: Path
    seconds: float = 0.0

    def __call__(self) -> Callable[[Number], dict[str, int]]:
        def square(cell: Number) -> dict[str, int]:
            (self.notes / f"{cell.value}-{os.getpid()}").touch()
            time.sleep(self.seconds)
            if cell.value == 13:
                raise UserError("13 is not to be squared")
            if cell.value == 666:
                os._exit(1)
            return {"square": cell.value**2}

        return square


def square_many(directory: str, count: int) -> None:
    """What a test that interrupts a process runs in another one: the first cell is quick, the others take long."""
    folder = Path(directory)
    compute_cells([Number(0)], CellStore(folder / "cells"), OpenSquarer(folder), 1, "first")
    cells = [Number(value) for value in range(count)]
    compute_cells(cells, CellStore(folder / "cells"), OpenSquarer(folder, seconds=60.0), 2, "others")
