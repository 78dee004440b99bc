"""Questions: which tasks take part, and which questions of them are answered."""

from __future__ import annotations

import pytest

from toprl_export.errors import UserError
from toprl_export.evaluation.questions import choose_tasks, draw_questions
from toprl_export.tasks.registry import TASKS


def test_tasks_are_those_requested_else_those_of_the_agents_else_all() -> None:
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
    drawn = draw_questions(exist, 0, 6)
    assert (drawn.count, drawn.level, drawn.evidence_patches) == (6, "perception", 576)
    assert draw_questions(exist, 0, 6) == drawn
    assert draw_questions(exist, 1, 6).digest != drawn.digest
