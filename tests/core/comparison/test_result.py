"""compare.json: what is written comes back, and other files are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.comparison import made_up_comparison
from toprl_export.comparison.result import read_comparison, write_comparison
from toprl_export.errors import UserError
from toprl_export.fields import to_json


@pytest.mark.parametrize("latency", [True, False])
def test_a_comparison_comes_back_from_its_file(tmp_path: Path, latency: bool) -> None:
    comparison = made_up_comparison(latency)
    write_comparison(tmp_path / "compare.json", comparison)
    assert read_comparison(tmp_path / "compare.json") == comparison


def test_a_file_of_another_kind_version_or_shape_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "compare.json"
    payload = to_json(made_up_comparison())
    for change, expected in (
        ({"format": "other"}, "expected 'toprl-export/comparison'"),
        ({"version": 99}, "this release reads version 2"),
        ({"budgets_kept": ["12"]}, r"budgets_kept\[0\] is '12', expected a whole number"),
    ):
        path.write_text(json.dumps(payload | change))
        with pytest.raises(UserError, match=expected):
            read_comparison(path)


def test_gaps_have_a_reason_and_no_entry() -> None:
    comparison = made_up_comparison()
    assert comparison.reason("oracle", "mini-count", 12) == "nobody knows the evidence"
    assert comparison.entry("oracle", "mini-count", 12) is None
    assert comparison.average("oracle", 12) is None
    assert comparison.reason("oracle", "mini-exist", 12) is None
    assert comparison.entry("oracle", "mini-exist", 12) is not None
