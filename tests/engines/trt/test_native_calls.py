"""Ctrl-C waits for the end of native work, and is never lost."""

from __future__ import annotations

import signal
import threading

import pytest

from toprl_engines.trt.native_calls import deferred_interrupt


def test_ctrl_c_is_raised_behind_the_block():
    reached = False
    with pytest.raises(KeyboardInterrupt), deferred_interrupt() as pressed:
        assert not pressed()
        signal.raise_signal(signal.SIGINT)
        assert pressed()
        reached = True
    assert reached
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_without_ctrl_c_nothing_happens_and_the_handler_is_back():
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupt() as pressed:
        assert signal.getsignal(signal.SIGINT) is not before
    assert not pressed() and signal.getsignal(signal.SIGINT) is before


def test_an_error_in_the_block_is_what_is_raised():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="broken"), deferred_interrupt():
        raise ValueError("broken")
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_leave_the_handler_alone():
    before, found = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with deferred_interrupt() as pressed:
            found.append((pressed(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]
