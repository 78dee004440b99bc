"""compare.md: the layout of the paper's Table 1, what is bold, footnotes, the tables below it; and compare.csv."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from tests.support.comparison import made_up_comparison
from toprl_export.comparison.result import Gap
from toprl_export.comparison.tables import (
    csv_records,
    detail_table,
    latency_table,
    main_table,
    margin_table,
    render_markdown,
    schedule_table,
)
from toprl_export.evaluation.tables import csv_text


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]


def test_the_main_table_is_laid_out_as_the_papers() -> None:
    table = rows(main_table(made_up_comparison()))
    assert table[0] == ["", "Perception", "Reasoning", ""]
    assert table[2] == ["**method**", "mini-exist", "mini-count", "**average**"]
    assert [row[0] for row in table[3:]] == [
        "**unpruned: 25 tokens (100%)**",
        "unpruned",
        "**12 tokens kept on average (48.0%)**",
        "random",
        "fastv",
        "dart",
        "toprl",
        "*oracle*",
    ]
    assert {len(row) for row in table} == {4}


def test_a_figure_is_accuracy_and_retention() -> None:
    comparison = made_up_comparison()
    entry, average = comparison.entry("fastv", "mini-exist", 12), comparison.average("fastv", 12)
    assert entry is not None and average is not None
    row = next(row for row in rows(main_table(comparison)) if row[0] == "fastv")
    assert row[1] == f"{entry.accuracy.value * 100:.1f} · {entry.retention.value:.1%}"
    assert row[3] == f"{average.accuracy * 100:.1f} · {average.retention.value:.1%}"


def test_the_best_of_a_column_is_bold_but_never_the_oracle() -> None:
    comparison = made_up_comparison()
    block = {row[0]: row[1:] for row in rows(main_table(comparison))[6:]}
    bold = {name: [cell.startswith("**") for cell in cells] for name, cells in block.items()}
    assert bold["toprl"] == [True, True, True] or bold["dart"][1]
    for column in range(3):
        best = max(
            ("random", "fastv", "dart", "toprl"), key=lambda name: float(block[name][column].strip("*").split(" ")[0])
        )
        assert [name for name in block if bold[name][column]] == [best]
    oracle = comparison.entry("oracle", "mini-exist", 12)
    assert oracle is not None and oracle.retention.value == 1.0  # it would have won


def test_gaps_are_dashes_with_one_footnote_for_each_reason() -> None:
    comparison = made_up_comparison()
    gaps = (*comparison.gaps, Gap("dart", "mini-exist", 12, "too late"), Gap("dart", "mini-count", 12, "too late"))
    entries = tuple(one for one in comparison.entries if one.method != "dart")
    averages = tuple(one for one in comparison.averages if one.method != "dart")
    text = main_table(replace(comparison, gaps=gaps, entries=entries, averages=averages))
    table = {row[0]: row[1:] for row in rows(text)}
    assert table["dart"] == ["–¹", "–¹", "–"]
    assert table["*oracle*"][1:] == ["–²", "–"]
    assert "¹ dart, 12 kept: too late\n" in text
    assert "² oracle, 12 kept: nobody knows the evidence\n" in text


def test_details_give_intervals_seeds_and_their_spread() -> None:
    comparison = made_up_comparison()
    entry = comparison.entry("toprl", "mini-count", 12)
    assert entry is not None
    row = next(row for row in rows(detail_table(comparison)) if row[:3] == ["12", "mini-count", "toprl"])
    low, high = entry.accuracy_by_seed
    assert row[3] == "11.8"
    assert row[5] == f"{low * 100:.1f}, {high * 100:.1f}"
    assert row[6] == f"{abs(high - low) * 100:.1f}"
    assert row[4] == f"{entry.accuracy.value:.1%} [{entry.accuracy.ci95[0]:.1%}, {entry.accuracy.ci95[1]:.1%}]"
    assert row[7].startswith(f"{entry.retention.value:.1%} [")


def test_margins_stand_beside_those_over_random() -> None:
    table = rows(margin_table(made_up_comparison()))
    assert [row[2:4] for row in table[2:]] == [
        ["mini-exist", "fastv"],
        ["mini-count", "dart"],
        ["average", "best of each task"],
        ["average without mini-exist", "best of each task"],
        ["average", "dart (best on average)"],
        ["average without mini-exist", "dart (best on average)"],
    ]
    exist, count = table[2], table[3]
    assert exist[5] == "above" and count[5] == "no" and {exist[7], count[7]} == {"above"}


def test_latency_and_schedules_have_a_row_for_each_method() -> None:
    comparison = made_up_comparison()
    assert rows(latency_table(comparison))[3] == ["12", "random", "20.0", "1.5", "2.00×"]
    assert ["12", "fastv", "0, 2", "15, 9", "11.8"] in rows(schedule_table(comparison))
    assert not [row for row in rows(schedule_table(comparison)) if row[1] == "unpruned"]


def test_the_page_names_command_agents_and_picture_and_leaves_out_what_was_not_measured() -> None:
    page = render_markdown(made_up_comparison(), "pareto.png")
    for part in (
        "(pareto.png)",
        "toprl-export compare",
        "`aaaaaaaaaaaa…`",
        "200 held-out questions",
        "Some CPU",
    ):
        assert part in page
    assert "## Prefill latency" not in render_markdown(made_up_comparison(latency=False), "pareto.png")
    bare = replace(made_up_comparison(), margins=())
    assert "## Agents against baselines" not in render_markdown(bare, "pareto.png")


def read_back() -> dict[tuple[str, str], dict[str, str]]:
    text = csv_text(csv_records(made_up_comparison()))
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
