"""Progress off a terminal: a line every half minute, with a count and an estimate."""

from __future__ import annotations

import logging

import pytest

from toprl_export import progress
from toprl_export.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands at its one element."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_is_logged_every_half_minute(clock: list[float], caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "toprl_export")
    with Progress("mini-exist", 120, "update") as bar:
        for _ in range(40):
            clock[0] += 2
            bar.postfix("42 rollouts/s")
            bar.update()
    assert caplog.messages == [
        "mini-exist: 15/120 updates, 0:30 elapsed, about 3:30 left, 42 rollouts/s",
        "mini-exist: 30/120 updates, 1:00 elapsed, about 3:00 left, 42 rollouts/s",
    ]


def test_what_an_earlier_run_did_does_not_count_into_the_estimate(clock: list[float], caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "toprl_export")
    with Progress("training", 100, "update", initial=90) as bar:
        clock[0] += 3600
        bar.update()
    assert caplog.messages == ["training: 91/100 updates, 1:00:00 elapsed, about 9:00:00 left"]


@pytest.mark.parametrize(("seconds", "silent"), [(10, False), (100, True)])
def test_short_work_and_other_processes_say_nothing(
    clock: list[float],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    seconds: float,
    silent: bool,
):
    caplog.set_level(logging.INFO, "toprl_export")
    with Progress("answers", 2, silent=silent) as bar:
        clock[0] += seconds
        bar.update()
    assert not caplog.messages
    assert capfd.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_no_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.0)
    caplog.set_level(logging.INFO, "toprl_export")
    with Progress("answers", 2) as bar:
        bar.describe("parity")
        bar.update()
    assert not caplog.messages
    assert "parity" in capfd.readouterr().err
