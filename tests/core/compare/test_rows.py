"""compare.csv: a record for every place of the table."""

from __future__ import annotations

import csv
import io

import pytest

from tests.support.comparison import made_up_comparison
from toprl_export.analyze.results import csv_text
from toprl_export.compare.rows import csv_rows


def read_back() -> dict[tuple[str, str], dict[str, str]]:
    text = csv_text(csv_rows(made_up_comparison()))
    return {(row["method"], row["task"]): row for row in csv.DictReader(io.StringIO(text))}


def test_every_method_and_task_has_a_record() -> None:
    methods = ("unpruned", "random", "fastv", "dart", "toprl", "oracle")
    assert set(read_back()) == {(method, task) for method in methods for task in ("mini-exist", "mini-count")}


def test_a_record_holds_what_was_measured() -> None:
    comparison = made_up_comparison()
    entry = comparison.entry("toprl", "mini-count", 12)
    assert entry is not None
    row = read_back()["toprl", "mini-count"]
    assert (row["level"], row["budget_kept"], row["average_kept"]) == ("reasoning", "12", "11.75")
    assert (row["stage_layers"], row["keep_counts"], row["seeds"]) == ("0 2", "15 9", "0 1")
    assert float(row["accuracy"]) == pytest.approx(entry.accuracy.value, rel=1e-5)
    assert float(row["retention_low"]) == pytest.approx(entry.retention.ci95[0], rel=1e-5)
    assert [float(value) for value in row["by_seed"].split()] == pytest.approx(entry.accuracy_by_seed, rel=1e-5)
    assert (row["questions"], row["prefill_ms"], row["reason"]) == ("200", "21", "")


def test_a_gap_has_its_reason_and_no_figures() -> None:
    row = read_back()["oracle", "mini-count"]
    assert row["reason"] == "nobody knows the evidence"
    assert row["accuracy"] == row["retention"] == row["keep_counts"] == row["prefill_ms"] == ""
