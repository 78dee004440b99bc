"""The reference page: it is what the commands are now, however wide the terminal is."""

from __future__ import annotations

from pathlib import Path

import pytest

from toprl_export.cli.main import COMMANDS
from toprl_export.cli.reference import reference_page

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"


def test_the_committed_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == reference_page(), (
        "docs/cli.md is out of date: python -m toprl_export.cli.reference > docs/cli.md"
    )


def test_it_has_every_command_and_its_flags(monkeypatch: pytest.MonkeyPatch):
    page = reference_page()
    for name in COMMANDS:
        assert f"\n## toprl-export {name}" in page
    assert "\n- `--budget-kept N[,N]`: visual tokens kept" in page and "[default: 192,64]" in page
    monkeypatch.setenv("COLUMNS", "40")
    assert reference_page() == page


@pytest.mark.usefixtures("engine_command_lines")
def test_it_has_what_engines_bring():
    assert "\nFake (--engine configurable):\n\n- `--tiles N`: how many tiles (default: 4)\n" in reference_page()
