"""Every command that writes looks at the place first, dry runs included; SIGTERM ends it as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from toprl_export.cli.main import EXIT_TERMINATED, main
from toprl_export.places import taken

TOO_LONG = "x" * 260
COMMANDS = {
    "train": ["train", "--output-dir"],
    "train, dry": ["train", "--dry-run", "--output-dir"],
    "build": ["build", "--baseline", "fastv-p", "--output-dir"],
    "build, dry": ["build", "--baseline", "fastv-p", "--dry-run", "--output-dir"],
    "validate": ["validate", "no-bundle", "--report-dir"],
    "compare": ["compare", "--output-dir"],
    "compare, dry": ["compare", "--dry-run", "--output-dir"],
    "analyze": ["analyze", "cliff", "--output-dir"],
    "visualize": ["visualize", "--agent", "no-agent", "--output"],
    "tasks": ["tasks", "mini-exist", "--output"],
}


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("work began before the place was checked")

    monkeypatch.setattr("toprl_export.models.load.load_model", fail)
    monkeypatch.setattr("toprl_export.building.load_model", fail)
    monkeypatch.setattr("toprl_export.comparison.runner.load_model", fail)
    monkeypatch.setattr("toprl_export.analysis.study.load_model", fail)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["too long", "below a file", "below proc"])
def test_impossible_places_are_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, place: str
):
    (tmp_path / "file").touch()
    folder = {"too long": tmp_path / TOO_LONG, "below a file": tmp_path / "file", "below proc": Path("/proc/none")}
    target = folder[place] / "out.png"
    assert main([*COMMANDS[command], str(target)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "choose another place" in printed
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("command", ["build", "compare"])
def test_a_second_run_into_one_place_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str):
    script = (
        f"from pathlib import Path\nfrom toprl_export.places import taken\nwith taken(Path({str(tmp_path / 'out')!r})):"
    )
    script += "\n    print('taken', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "taken\n"
        assert main([*COMMANDS[command], str(tmp_path / "out")]) == 2
        assert "is being written by another run" in capsys.readouterr().err
        other.communicate("\n")
    assert os.listdir(tmp_path) == []


def test_sigterm_cleans_up_and_exits_143(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    def terminated(*_: object, **__: object) -> None:
        with taken(tmp_path / "out"):
            assert os.listdir(tmp_path) == [".out.lock"]
            os.kill(os.getpid(), signal.SIGTERM)
            while True:
                signal.pause()

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("toprl_export.building.check_place", terminated)
    assert main([*COMMANDS["build"], str(tmp_path / "out")]) == EXIT_TERMINATED == 143
    assert capsys.readouterr().err == "terminated\n"
    assert os.listdir(tmp_path) == [] and signal.getsignal(signal.SIGTERM) == before
