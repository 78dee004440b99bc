"""The examples in docstrings of what users call first, run as they stand."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_engine import made_up_bundle
from toprl_export.registry import Registry

MODULES = (
    "toprl_export",
    "toprl_export.api",
    "toprl_export.optimum",
    "toprl_export.pruning.baselines.specs",
    "toprl_export.pruning.flops",
    "toprl_export.pruning.plan",
    "toprl_export.pruning.schedule",
    "toprl_export.pruning.select",
    "toprl_export.registry",
    "toprl_export.runtime.answer_length",
    "toprl_export.runtime.frontend",
    "toprl_export.seeding",
    "toprl_export.tasks.metrics",
    "toprl_export.tasks.registry",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_show_what_happens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = Registry("engine", {"fake": "tests.support.fake_engine:FakeEngine"})
    monkeypatch.setattr("toprl_export.engine.ENGINES", fake)
    made_up_bundle(tmp_path / "bundle")
    given: dict[str, Any] = {"directory": tmp_path / "bundle"}  # a bundle for the examples that load one
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs=given, optionflags=doctest.FAIL_FAST)
    assert result.attempted > 0 and result.failed == 0
