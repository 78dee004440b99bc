"""Margins: who the rivals are, differences against plain arithmetic, and when they count as significant."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.comparison import made_up_findings, made_up_outcomes, make_cell
from toprl_export.compare.findings import Findings
from toprl_export.compare.margins import all_margins
from toprl_export.compare.result import Margin


def accuracy(method: str, task: str) -> float:
    return float(
        np.mean([right for cell, right in made_up_outcomes().items() if (cell.method, cell.task) == (method, task)])
    )


def by_place(margins: tuple[Margin, ...]) -> dict[tuple[str | None, str], Margin]:
    return {(one.task, one.role): one for one in margins}


def test_rivals_are_each_tasks_best_and_the_best_on_average() -> None:
    found = by_place(all_margins(made_up_findings()))
    rivals = {place: one.rival for place, one in found.items()}
    assert rivals == {
        ("mini-exist", "best baseline"): "fastv",
        ("mini-exist", "random"): "random",
        ("mini-count", "best baseline"): "dart",
        ("mini-count", "random"): "random",
        (None, "best baseline"): "best of each task",
        (None, "best baseline on average"): "dart",
        (None, "random"): "random",
    }


def test_differences_are_those_of_the_pooled_accuracies() -> None:
    found = by_place(all_margins(made_up_findings()))
    exist = accuracy("toprl", "mini-exist") - accuracy("fastv", "mini-exist")
    count = accuracy("toprl", "mini-count") - accuracy("dart", "mini-count")
    dart = accuracy("toprl", "mini-exist") - accuracy("dart", "mini-exist")
    assert found["mini-exist", "best baseline"].difference.value == pytest.approx(exist)
    assert found[None, "best baseline"].difference.value == pytest.approx((exist + count) / 2)
    assert found[None, "best baseline on average"].difference.value == pytest.approx((dart + count) / 2)


def test_only_an_interval_without_zero_is_significant() -> None:
    found = by_place(all_margins(made_up_findings()))
    assert found["mini-exist", "best baseline"].significant  # 92% against 70%
    assert not found["mini-count", "best baseline"].significant  # 85% against 85%
    for one in found.values():
        low, high = one.difference.ci95
        assert low <= one.difference.value <= high
        assert one.significant == (low > 0 or high < 0)


def test_answers_are_compared_question_by_question() -> None:
    right = made_up_outcomes()[make_cell("fastv")]
    better = right.copy()
    better[np.flatnonzero(right == 0)[:8]] = 1  # never worse: 8 questions gained, none lost
    worse = np.roll(better, 1)  # as many right answers, on other questions
    full = np.ones_like(right)

    def margin(own: np.ndarray) -> Margin:
        cells = [make_cell("unpruned"), make_cell("fastv"), make_cell("toprl")]
        return by_place(all_margins(Findings(cells, [full, right, own], 0)))["mini-exist", "best baseline"]

    assert margin(better).significant
    assert margin(worse).difference.value == pytest.approx(margin(better).difference.value)
    assert not margin(worse).significant


def test_without_agents_there_are_no_margins() -> None:
    outcomes = {cell: right for cell, right in made_up_outcomes().items() if cell.method != "toprl"}
    assert all_margins(Findings(list(outcomes), list(outcomes.values()), 0)) == ()
