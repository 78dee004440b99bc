"""Fixtures that several modules of the core's tests share."""

from __future__ import annotations

import pytest

from toprl_export.registry import Registry


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ``fake`` the only engine, with no builds yet."""
    from tests.support.fake_engine import FakeEngine

    monkeypatch.setattr(FakeEngine, "builds", 0)
    monkeypatch.setattr(
        "toprl_export.engine.ENGINES", Registry("engine", {"fake": "tests.support.fake_engine:FakeEngine"})
    )
