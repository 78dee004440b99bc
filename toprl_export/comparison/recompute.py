"""Every answer of a comparison in one compressed file, and every figure again from it.

``python -m toprl_export.comparison.recompute DIR`` reads ``answers.json.gz`` and ``compare.json`` (or
``compare.json.gz``) in DIR, makes all estimates anew, says whether they are those in the file, and prints the tables.
It needs neither the model nor the agents.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from toprl_export.comparison.findings import Findings, all_margins
from toprl_export.comparison.method_cell import MethodCell
from toprl_export.comparison.result import JSON_FILE, Comparison
from toprl_export.comparison.tables import render_markdown
from toprl_export.errors import UserError
from toprl_export.evaluation.estimates import Correctness
from toprl_export.fields import read_fields, to_json
from toprl_export.files import read_regular, write_bytes_atomic

ANSWERS_FILE = "answers.json.gz"
_PICTURE = "pareto.png"


@dataclass(frozen=True)
class AnsweredCell:
    """A cell and which of its questions were answered correctly, one digit of 0 or 1 each."""

    cell: MethodCell
    right: str


@dataclass(frozen=True)
class Answers:
    """``answers.json.gz``: all cells of a comparison in their order, and the seed of its bootstrap."""

    format: Literal["toprl-export/comparison-answers"] = field(default="toprl-export/comparison-answers", kw_only=True)
    version: Literal[1] = field(default=1, kw_only=True)
    seed: int
    cells: tuple[AnsweredCell, ...]

    @classmethod
    def of(cls, cells: Sequence[MethodCell], correct: Sequence[Correctness], seed: int) -> Answers:
        """What was measured; where agents lie on this machine is left out."""
        answered = [
            AnsweredCell(replace(cell, agent=None), str(cell.result(one.tolist())["right"]))
            for cell, one in zip(cells, correct, strict=True)
        ]
        return cls(seed, tuple(answered))

    def findings(self) -> Findings:
        """All estimates anew.

        Raises:
            UserError: a cell's answers are not as many digits as it has questions.
        """
        cells = [one.cell for one in self.cells]
        return Findings(cells, [one.cell.correct({"right": one.right}) for one in self.cells], self.seed)


def write_answers(path: Path, answers: Answers) -> None:
    """Write ``answers.json.gz``; equal answers give equal bytes."""
    text = json.dumps(to_json(answers), separators=(",", ":"))
    write_bytes_atomic(path, gzip.compress(text.encode(), mtime=0))


MOST_BYTES = 2**28
"""Of one file, unpacked: a comparison of 1,000 questions has a few megabytes."""


def read_answers(path: Path) -> Answers:
    """Read what :func:`write_answers` wrote.

    Raises:
        UserError: the file is missing, damaged, of another format or version, or lacks a field.
    """
    return read_fields(Answers, _unpacked(path), path, "repeat the comparison")


def recompute(directory: Path) -> tuple[Comparison, bool]:
    """The comparison in a directory with its estimates made anew, and whether they are those that it states.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    packed = directory / f"{JSON_FILE}.gz"
    path = packed if packed.is_file() else directory / JSON_FILE
    stated = read_fields(Comparison, _unpacked(path), path, "repeat the comparison")
    findings = read_answers(directory / ANSWERS_FILE).findings()
    found = replace(stated, entries=findings.entries(), averages=findings.averages(), margins=all_margins(findings))
    return found, _rounded(to_json(found)) == _rounded(to_json(stated))


def _unpacked(path: Path) -> Any:
    content = read_regular(path, "a comparison's file", MOST_BYTES)
    try:
        if path.suffix == ".gz":
            unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # 16: with gzip's header
            content = unpacking.decompress(content, MOST_BYTES)
            if unpacking.unconsumed_tail:
                raise UserError(f"{path} unpacks to more than {MOST_BYTES:,} bytes; expected a comparison's file")
        return json.loads(content)
    except (zlib.error, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): repeat the comparison") from error


def _rounded(value: Any) -> Any:
    """Without the last digits, in which processors that sum in another order may differ."""
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(np.round(value, 9)) if isinstance(value, float) else value


def main(arguments: Sequence[str]) -> int:
    """Print the tables; 1 where the estimates are others than those stated, 2 where they cannot be made."""
    if len(arguments) != 1:
        print("usage: python -m toprl_export.comparison.recompute DIR", file=sys.stderr)
        return 2
    try:
        comparison, same = recompute(Path(arguments[0]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(render_markdown(comparison, _PICTURE))
    verdict = "all estimates are those stated" if same else "error: these estimates differ from those stated"
    print(verdict, file=sys.stderr)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
