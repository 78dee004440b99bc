"""Requests: what is refused, which baselines and tasks take part, and which questions are asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from toprl_export.compare.request import CompareRequest, choose_tasks, draw_questions
from toprl_export.errors import UserError
from toprl_export.pruning.baselines.specs import BASELINES
from toprl_export.tasks.registry import TASKS

PLACE = Path("somewhere")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"limit": 0}, "limit is 0, expected at least 1"),
        ({"jobs": 0}, "jobs is 0"),
        ({"draws": 0}, "random draws is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"iterations": -1}, "iterations is -1, expected at least 0"),
        ({"budgets_kept": ()}, "no budget"),
        ({"budgets_kept": (64, 0)}, r"budget_kept\[1\] is 0"),
        ({"baselines": ("fastvv",)}, "unknown baseline 'fastvv'; did you mean 'fastv'"),
    ],
)
def test_impossible_requests_are_one_line(change: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        CompareRequest(PLACE, **change)


def test_budgets_stand_once_and_largest_first() -> None:
    assert CompareRequest(PLACE, budgets_kept=(64, 192, 64)).budgets == (192, 64)


def test_random_takes_part_always() -> None:
    assert CompareRequest(PLACE).baseline_names == (*BASELINES, "oracle")
    assert CompareRequest(PLACE, baselines=("oracle", "fastv")).baseline_names == ("random", "fastv", "oracle")


def test_tasks_are_those_asked_else_those_of_the_agents_else_all() -> None:
    def names(*arguments: object) -> list[str]:
        return [task.name for task in choose_tasks(*arguments)]

    assert names(("mini-count", "mini-exist"), ["mini-read"]) == ["mini-exist", "mini-count"]
    assert names(None, ["mini-read", "mini-read"]) == ["mini-read"]
    installed = [name for name in TASKS.names() if TASKS.get(name).missing() is None]
    assert names(None, []) == names(("all",), ["mini-read"]) == installed
    with pytest.raises(UserError, match="unknown task 'mini-exit'; did you mean 'mini-exist'"):
        choose_tasks(("mini-exit",), [])


def test_the_digest_tells_questions_apart() -> None:
    exist = TASKS.get("mini-exist")
    asked = draw_questions(exist, 0, 6)
    assert (asked.count, asked.level, asked.evidence_patches) == (6, "perception", 576)
    assert draw_questions(exist, 0, 6) == asked
    assert draw_questions(exist, 1, 6).digest != asked.digest
