"""Figures made again from every answer: the same ones; others where an answer was changed; damage is one line."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.comparison import made_up_comparison, made_up_correctness
from toprl_export.comparison.recompute import ANSWERS_FILE, Answers, main, read_answers, recompute, write_answers
from toprl_export.comparison.result import write_comparison
from toprl_export.fields import to_json


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    found = made_up_correctness()
    cells = [replace(cell, agent="/home/somebody/agents") for cell in found]
    write_answers(tmp_path / ANSWERS_FILE, Answers.of(cells, list(found.values()), seed=0))
    write_comparison(tmp_path / "compare.json", made_up_comparison())
    return tmp_path


def test_the_figures_are_those_stated(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, same = recompute(directory)
    assert same and found == made_up_comparison()
    assert main([str(directory)]) == 0
    printed = capsys.readouterr()
    assert "| toprl |" in printed.out and "all estimates are those stated" in printed.err


def test_compressed_tables_do_as_well_and_nobodys_directory_is_told(directory: Path) -> None:
    plain = directory / "compare.json"
    (directory / "compare.json.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert recompute(directory)[1]
    assert b"somebody" not in gzip.decompress((directory / ANSWERS_FILE).read_bytes())


def test_one_changed_answer_shows(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = read_answers(directory / ANSWERS_FILE)
    first = answers.cells[0]
    flipped = replace(first, right=("0" if first.right[0] == "1" else "1") + first.right[1:])
    write_answers(directory / ANSWERS_FILE, replace(answers, cells=(flipped, *answers.cells[1:])))
    assert main([str(directory)]) == 1
    assert "differ from those stated" in capsys.readouterr().err


def test_equal_answers_have_equal_bytes(directory: Path, tmp_path: Path) -> None:
    write_answers(tmp_path / "again.json.gz", read_answers(directory / ANSWERS_FILE))
    assert (tmp_path / "again.json.gz").read_bytes() == (directory / ANSWERS_FILE).read_bytes()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"no gzip", "is damaged"),
        (gzip.compress(b"{", mtime=0), "is damaged"),
        (gzip.compress(b'{"format": "other", "version": 1, "seed": 0, "cells": []}', mtime=0), "other"),
        (None, "does not exist"),
    ],
    ids=["no gzip", "no JSON", "another format", "nothing"],
)
def test_what_cannot_be_read_is_one_line(
    directory: Path, content: bytes | None, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = directory / ANSWERS_FILE
    path.write_bytes(content) if content is not None else path.unlink()
    assert main([str(directory)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and expected in lines[0]


def test_a_cell_with_too_few_answers_is_one_line(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    payload = to_json(read_answers(directory / ANSWERS_FILE))
    payload["cells"][0]["right"] = "1"
    (directory / ANSWERS_FILE).write_bytes(gzip.compress(json.dumps(payload).encode()))
    assert main([str(directory)]) == 2
    assert "is not 200 digits of 0 or 1" in capsys.readouterr().err
