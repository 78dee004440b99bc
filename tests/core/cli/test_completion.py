"""completion: the scripts, and what they complete."""

from __future__ import annotations

import subprocess
import sys

import pytest

from toprl_export.cli.main import COMMANDS, main
from toprl_export.models.registry import NAMED_MODELS
from toprl_export.pruning.baselines.specs import BASELINES
from toprl_export.tasks.registry import TASKS


def completed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str) -> list[str]:
    """What bash is told for ``line``, whose last word is incomplete."""
    monkeypatch.setenv("_TOPRL_EXPORT_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    assert main([]) == 0
    return [answer.partition(",")[2] for answer in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_names_program_and_shell(shell: str, capsys: pytest.CaptureFixture[str]):
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert f"_TOPRL_EXPORT_COMPLETE={shell}_complete" in printed and "toprl-export" in printed


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["completion", "bsh"]) == 2
    assert "unknown value of SHELL 'bsh'; did you mean 'bash'? known: bash, zsh, fish" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("toprl-export ", [*COMMANDS]),
        ("toprl-export va", ["validate"]),
        ("toprl-export analyze s", ["sensitivity"]),
        ("toprl-export train --res", ["--resume"]),
        ("toprl-export train --task ", TASKS.names()),
        ("toprl-export tasks mini-c", ["mini-colour", "mini-count", "mini-compare"]),
        ("toprl-export compare --agents a b --baselines fast", [name for name in BASELINES if name.startswith("fast")]),
        ("toprl-export compare --tasks mini-read,mini-r", ["mini-read,mini-read", "mini-read,mini-relation"]),
        ("toprl-export build --precision fp", ["fp32", "fp16"]),
        ("toprl-export train --condition ", ["none", "text"]),
        ("toprl-export train --model ", [*NAMED_MODELS]),
    ],
)
def test_names_and_flags_are_completed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, expected: list[str]
):
    assert completed(monkeypatch, capsys, line) == expected


@pytest.mark.usefixtures("engine_command_lines")
def test_engines_and_providers_are_completed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert completed(monkeypatch, capsys, "toprl-export build --engine conf") == ["configurable"]
    assert completed(monkeypatch, capsys, "toprl-export build --til") == ["--tiles"]
    assert completed(monkeypatch, capsys, "toprl-export run x --provider ") == ["here", "there"]


def test_completing_a_command_imports_no_command():
    script = (
        "import os, sys\nfrom toprl_export.cli.main import main\n"
        "os.environ.update(_TOPRL_EXPORT_COMPLETE='bash_complete', COMP_WORDS='toprl-export ', COMP_CWORD='1')\n"
        f"main([])\nsys.exit(any('toprl_export.cli.' + name in sys.modules for name in {list(COMMANDS)!r}))"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
