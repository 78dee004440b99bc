"""Fixtures that several modules of the core's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.yes_no_model import save_yes_no_model
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.load import load_model
from toprl_export.registry import Registry


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The yes/no model, which has half of mini-exist right, saved once for all tests."""
    return save_yes_no_model(tmp_path_factory.mktemp("model") / "yes-no")


@pytest.fixture(scope="session")
def adapter(model_dir: Path) -> LVLMAdapter:
    return load_model(str(model_dir))


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ``fake`` the only engine, with no builds yet."""
    from tests.support.fake_engine import FakeEngine

    monkeypatch.setattr(FakeEngine, "builds", 0)
    monkeypatch.setattr(
        "toprl_export.engine.ENGINES", Registry("engine", {"fake": "tests.support.fake_engine:FakeEngine"})
    )
