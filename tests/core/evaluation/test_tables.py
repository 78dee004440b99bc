"""Figures as text."""

from __future__ import annotations

from toprl_export.evaluation.estimates import Estimate
from toprl_export.evaluation.tables import counted, csv_text, estimate_fields, markdown_table, percent, points


def test_estimates_as_text():
    assert percent(Estimate(0.975, (0.96, 0.984))) == "97.5% [96.0%, 98.4%]"
    assert points(Estimate(-0.012, (-0.03, 0.004))) == "-1.2 [-3.0, +0.4]"


def test_records_as_csv_with_gaps_where_there_is_no_estimate():
    assert csv_text([{"a": "x, y", "b": 1}]) == 'a,b\n"x, y",1\n'
    assert estimate_fields("f", Estimate(0.5, (0.25, 2 / 3))) == {"f": "0.5", "f_low": "0.25", "f_high": "0.666667"}
    assert estimate_fields("f", None) == {"f": "", "f_low": "", "f_high": ""}


def test_a_markdown_table():
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_counts_have_their_plural():
    assert [counted(number, "seed") for number in (1, 2, 1200)] == ["1 seed", "2 seeds", "1,200 seeds"]
