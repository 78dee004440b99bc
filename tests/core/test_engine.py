"""Engines by name: unknown ones list the known, and one that cannot work here says so before anything is built."""

from __future__ import annotations

import pytest

from tests.support.fake_engine import FakeEngine
from toprl_export.engine import get_engine
from toprl_export.errors import MissingExtraError, UserError


def test_an_engine_is_made_and_checked(fake_engine: None, monkeypatch: pytest.MonkeyPatch):
    assert isinstance(get_engine("fake"), FakeEngine)

    def missing(self) -> None:
        raise MissingExtraError("tensorrt", "trt")

    monkeypatch.setattr(FakeEngine, "check", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'toprl-export\[trt\]'"):
        get_engine("fake")


def test_an_unknown_engine(fake_engine: None):
    with pytest.raises(UserError, match="unknown engine 'fale'; did you mean 'fake'\\? known: fake"):
        get_engine("fale")
