"""The output directory: an earlier comparison's is taken, anything else is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.comparison import made_up_comparison
from toprl_export.compare.outputs import check_directory, write_outputs
from toprl_export.compare.result import read_comparison
from toprl_export.errors import UserError


def test_four_files_are_written_and_may_be_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    check_directory(target)
    write_outputs(target, made_up_comparison())
    assert sorted(path.name for path in target.iterdir()) == ["compare.csv", "compare.json", "compare.md", "pareto.png"]
    assert read_comparison(target / "compare.json") == made_up_comparison()
    check_directory(target)


def test_an_interrupted_comparison_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / ".compare.json.partial-1a2b3c4d").write_text("left by a kill")
    check_directory(tmp_path)


@pytest.mark.parametrize("name", ["thesis.tex", "compare.md"])
def test_a_directory_of_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("dear diary")
    with pytest.raises(UserError, match=r"thesis\.tex\), so it is left alone|compare\.json does not exist"):
        check_directory(tmp_path)


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file, expected a directory"):
        check_directory(tmp_path / "out")
