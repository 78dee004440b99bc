"""Findings: pooled accuracies, retentions and averages against plain arithmetic; intervals that seeds do not narrow."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.comparison import QUESTIONS, made_up_findings, made_up_outcomes, make_cell
from toprl_export.compare.findings import Findings
from toprl_export.errors import UserError
from toprl_export.tasks.metrics import retention_interval, wilson_interval


def outcome(method: str, task: str, seed: int = 0) -> np.ndarray:
    return made_up_outcomes()[make_cell(method, task, seed=seed)]


def test_seeds_are_pooled() -> None:
    entry = next(one for one in made_up_findings().entries() if (one.method, one.task) == ("toprl", "mini-exist"))
    first, second = outcome("toprl", "mini-exist"), outcome("toprl", "mini-exist", 1)
    full = outcome("unpruned", "mini-exist")
    assert entry.seeds == (0, 1)
    assert entry.accuracy_by_seed == pytest.approx((first.mean(), second.mean()))
    assert entry.accuracy.value == pytest.approx((first.sum() + second.sum()) / (2 * QUESTIONS))
    assert entry.retention.value == pytest.approx(entry.accuracy.value / full.mean())
    assert (entry.keep_counts, entry.average_kept) == ((15, 9), 11.75)


def test_one_seed_has_the_intervals_of_the_metrics() -> None:
    entry = next(one for one in made_up_findings().entries() if (one.method, one.task) == ("fastv", "mini-count"))
    right, full = outcome("fastv", "mini-count"), outcome("unpruned", "mini-count")
    expected = retention_interval(right, full)
    assert entry.accuracy.ci95 == wilson_interval(int(right.sum()), QUESTIONS)
    assert entry.retention.value == pytest.approx(expected.value)
    assert entry.retention.ci95 == pytest.approx(expected.ci95, abs=0.02)  # other random numbers


def test_repeating_a_seed_does_not_narrow_the_intervals() -> None:
    full, right = outcome("unpruned", "mini-exist"), outcome("toprl", "mini-exist")

    def width(seeds: int) -> list[float]:
        cells = [make_cell("unpruned"), *(make_cell("toprl", seed=seed) for seed in range(seeds))]
        entry = Findings(cells, [full, *[right] * seeds], 0).entries()[1]
        return [high - low for low, high in (entry.accuracy.ci95, entry.retention.ci95)]

    assert width(4) == pytest.approx(width(1))
    # Four times the questions, by contrast, would halve them: what pooling the answers naively claims.
    pooled = retention_interval(np.tile(right, 4), np.tile(full, 4)).ci95
    assert pooled[1] - pooled[0] < 0.6 * width(1)[1]


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
    with pytest.raises(UserError, match=r"none of 200 questions of mini-exist rightly.*: leave that task out"):
        Findings(cells, [np.zeros(QUESTIONS), np.ones(QUESTIONS)], 0).entries()
