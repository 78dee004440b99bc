"""Findings: pooled accuracies, retentions, averages and margins against plain arithmetic; seeds narrow no interval."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.comparison import QUESTIONS, made_up_correctness, made_up_findings, make_cell
from toprl_export.comparison.findings import Findings, all_margins
from toprl_export.comparison.result import Margin
from toprl_export.errors import UserError
from toprl_export.tasks.metrics import retention_interval, wilson_interval


def correctness(method: str, task: str, seed: int = 0) -> np.ndarray:
    return made_up_correctness()[make_cell(method, task, seed=seed)]


def test_seeds_are_pooled() -> None:
    entry = next(one for one in made_up_findings().entries() if (one.method, one.task) == ("toprl", "mini-exist"))
    first, second = correctness("toprl", "mini-exist"), correctness("toprl", "mini-exist", 1)
    full = correctness("unpruned", "mini-exist")
    assert entry.seeds == (0, 1)
    assert entry.accuracy_by_seed == pytest.approx((first.mean(), second.mean()))
    assert entry.accuracy.value == pytest.approx((first.sum() + second.sum()) / (2 * QUESTIONS))
    assert entry.retention.value == pytest.approx(entry.accuracy.value / full.mean())
    assert (entry.keep_counts, entry.average_kept) == ((15, 9), 11.75)


def test_one_seed_has_the_intervals_of_the_metrics() -> None:
    entry = next(one for one in made_up_findings().entries() if (one.method, one.task) == ("fastv", "mini-count"))
    right, full = correctness("fastv", "mini-count"), correctness("unpruned", "mini-count")
    expected = retention_interval(right, full)
    assert entry.accuracy.ci95 == wilson_interval(int(right.sum()), QUESTIONS)
    assert entry.retention.value == pytest.approx(expected.value)
    assert entry.retention.ci95 == pytest.approx(expected.ci95, abs=0.02)  # other random numbers


def test_repeating_a_seed_does_not_narrow_the_intervals() -> None:
    full, right = correctness("unpruned", "mini-exist"), correctness("toprl", "mini-exist")

    def width(seeds: int) -> list[float]:
        cells = [make_cell("unpruned"), *(make_cell("toprl", seed=seed) for seed in range(seeds))]
        entry = Findings(cells, [full, *[right] * seeds], 0).entries()[1]
        return [high - low for low, high in (entry.accuracy.ci95, entry.retention.ci95)]

    # Wilson's interval of an accuracy is widened to the bootstrap's where there are seeds: nearly the same here.
    assert width(4) == pytest.approx(width(1), rel=0.1) and width(4)[1] == pytest.approx(width(1)[1])
    # Four times the questions, by contrast, would halve them: what pooling the answers naively claims.
    pooled = retention_interval(np.tile(right, 4), np.tile(full, 4)).ci95
    assert pooled[1] - pooled[0] < 0.6 * width(1)[1]


def test_seeds_that_differ_widen_the_intervals() -> None:
    full = np.ones(QUESTIONS)
    share = np.random.default_rng(0).random(QUESTIONS)
    cells = [make_cell("unpruned"), *(make_cell("toprl", seed=seed) for seed in range(3))]

    def found(shares: tuple[float, ...]) -> list[float]:
        entry = Findings(cells, [full, *[(share < one).astype(float) for one in shares]], 0).entries()[1]
        return [high - low for low, high in (entry.accuracy.ci95, entry.retention.ci95)]

    alike, apart = found((0.8, 0.8, 0.8)), found((0.6, 0.8, 1.0))
    # Three seeds 0.2 apart: the mean of three draws has a standard deviation of 0.163 / sqrt(3) beside the questions'.
    expected = 2 * 1.96 * float(np.hypot(np.std([0.6, 0.8, 1.0]) / 3**0.5, alike[1] / (2 * 1.96)))
    assert apart[1] == pytest.approx(expected, rel=0.15)
    assert apart[0] >= apart[1] - 1e-9 > 1.8 * alike[1]


def test_averages_are_told_without_the_task_that_moves_them_most() -> None:
    findings = made_up_findings()
    average = next(one for one in findings.averages() if one.method == "dart")
    entries = {one.task: one for one in findings.entries() if one.method == "dart"}
    assert average.without is not None and average.without.task in entries
    (other,) = set(entries) - {average.without.task}
    assert average.without.estimate.value == pytest.approx(entries[other].retention.value)
    margin = by_place(all_margins(findings))[None, "best baseline on average"]
    assert margin.without is not None and margin.without.task == "mini-exist"
    assert margin.without.estimate.value == pytest.approx(
        accuracy("toprl", "mini-count") - accuracy("dart", "mini-count")
    )
    one_task = {cell: right for cell, right in made_up_correctness().items() if cell.task == "mini-exist"}
    assert all(one.without is None for one in Findings(list(one_task), list(one_task.values()), 0).averages())


def test_averages_count_each_task_the_same_and_need_all_of_them() -> None:
    findings = made_up_findings()
    averages = {one.method: one for one in findings.averages()}
    assert set(averages) == {"unpruned", "random", "fastv", "dart", "toprl"}  # the oracle lacks a task
    entries = [one for one in findings.entries() if one.method == "dart"]
    average = averages["dart"]
    assert average.accuracy == pytest.approx(np.mean([one.accuracy.value for one in entries]))
    assert average.retention.value == pytest.approx(np.mean([one.retention.value for one in entries]))
    low, high = average.retention.ci95
    widths = [one.retention.ci95[1] - one.retention.ci95[0] for one in entries]
    # Tasks are drawn independently, so errors add by squares; drawn together they would add.
    assert high - low == pytest.approx(np.hypot(*widths) / 2, rel=0.1)
    assert averages["unpruned"].retention.ci95 == (1.0, 1.0)


def test_an_unpruned_model_without_right_answers_has_no_retention() -> None:
    cells = [make_cell("unpruned"), make_cell("fastv")]
    with pytest.raises(UserError, match=r"none of 200 questions of mini-exist correctly.*: leave that task out"):
        Findings(cells, [np.zeros(QUESTIONS), np.ones(QUESTIONS)], 0).entries()


def accuracy(method: str, task: str) -> float:
    return float(
        np.mean([right for cell, right in made_up_correctness().items() if (cell.method, cell.task) == (method, task)])
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
    right = made_up_correctness()[make_cell("fastv")]
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
    correct = {cell: right for cell, right in made_up_correctness().items() if cell.method != "toprl"}
    assert all_margins(Findings(list(correct), list(correct.values()), 0)) == ()
