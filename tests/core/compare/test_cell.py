"""Cells: what their identity hangs on, and results as they are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.comparison import make_cell
from toprl_export.errors import UserError
from toprl_export.evaluation.cells import CellStore, digest


def test_names_and_places_are_no_part_of_the_identity() -> None:
    cell = make_cell("fastv", questions=10)
    moved = replace(cell.setting, model="elsewhere")
    assert digest(replace(cell, method="FastV", agent="/there", setting=moved)) == digest(cell)


@pytest.mark.parametrize(
    "change",
    [
        {"scorer": "dart"},
        {"task": "mini-count"},
        {"questions": 11},
        {"questions_digest": "other data"},
        {"stage_layers": (0, 3)},
        {"keep_counts": (14, 9)},
        {"seed": 1},
    ],
)
def test_what_answers_depend_on_is_part_of_the_identity(change: dict[str, object]) -> None:
    cell = make_cell("fastv", questions=10)
    assert digest(replace(cell, **change)) != digest(cell)


@pytest.mark.parametrize("change", [{"model_fingerprint": "0" * 64}, {"seed": 1}, {"dtype": "float16"}])
def test_so_is_what_cells_share(change: dict[str, object]) -> None:
    cell = make_cell("fastv", questions=10)
    assert digest(replace(cell, setting=replace(cell.setting, **change))) != digest(cell)


def test_a_result_comes_back_from_its_file(tmp_path: Path) -> None:
    cell, store = make_cell("fastv", questions=10), CellStore(tmp_path)
    scores = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    store.save(cell, cell.result(scores))
    kept = store.load(cell)
    assert kept is not None
    assert np.array_equal(cell.outcomes(kept), scores)


@pytest.mark.parametrize("result", [{}, {"right": "101"}, {"right": "10110101x1"}, {"right": [1] * 10}])
def test_a_result_of_another_shape_is_one_line(result: dict[str, object]) -> None:
    with pytest.raises(UserError, match="fastv on mini-exist is not 10 digits of 0 or 1"):
        make_cell("fastv", questions=10).outcomes(result)
