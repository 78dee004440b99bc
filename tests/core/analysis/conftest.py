"""The tiny model, tasks that it answers, and a study of both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tiny_llava import tiny_adapter
from toprl_export.analysis.study import Scope, Study
from toprl_export.models.llava import LlavaAdapter
from toprl_export.tasks.registry import TASKS


@pytest.fixture(scope="session")
def adapter() -> LlavaAdapter:
    return tiny_adapter()


@pytest.fixture
def echo_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers `tests.support.echo_tasks`."""
    from tests.support.echo_tasks import TARGETS

    TASKS.names()
    for name, target in TARGETS.items():
        monkeypatch.setitem(TASKS._targets, name, target)


@pytest.fixture
def open_study(echo_tasks: None, adapter: LlavaAdapter, tmp_path: Path) -> Callable[..., Study]:
    """A study of the tiny model with other settings than these."""

    def opened(*tasks: str, **settings: object) -> Study:
        chosen = tasks or ("echo-look", "echo-think")
        return Study.open(Scope(tmp_path / "out", **{"tasks": chosen, "limit": 6, **settings}), adapter)

    return opened
