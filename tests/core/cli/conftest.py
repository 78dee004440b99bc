"""An engine with options of its own, for the commands that take what engines bring."""

from __future__ import annotations

import pytest

from toprl_export.registry import Registry

_SUPPORT = "tests.support.engine_command_line"


@pytest.fixture
def engine_command_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the engine ``configurable`` brings something to the command line; what ``broken`` brings is not there."""
    brought = {"configurable": f"{_SUPPORT}:FakeCommandLine", "broken": "no_such_package_here:CommandLine"}
    monkeypatch.setattr(
        "toprl_export.cli.engine_command_line.ENGINE_COMMAND_LINES", Registry("engine's command line", brought)
    )
    engines = {"configurable": f"{_SUPPORT}:ConfigurableFakeEngine", "fake": "tests.support.fake_engine:FakeEngine"}
    monkeypatch.setattr("toprl_export.engine.ENGINES", Registry("engine", engines))
