"""Ctrl-C during native work that calls back into Python."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C raises nothing; the value tells whether it was pressed. Behind the block it is raised.

    An exception that leaves a Python callback of TensorRT ends the process.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed within the block.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set  # only the main thread gets Ctrl-C
        return

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        pressed.set()

    former = signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, former)
    if pressed.is_set():
        raise KeyboardInterrupt
