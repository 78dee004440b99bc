"""While TensorRT works in native code: its log, which is kept and not printed, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

LISTING = "Layers:"
"""How the message begins that lists the layers of a built engine, one a line."""


class BuildLog(Protocol):
    """A TensorRT logger that keeps what matters.

    Attributes:
        errors: messages of failures, the last one last.
        warnings: other messages that a user may want to read.
        listing: the built engine's layers as text; empty until one is built.
        activation_bytes: device memory that running the built engine takes beside its weights; None until it is said.
    """

    errors: list[str]
    warnings: list[str]
    listing: str
    activation_bytes: int | None


def make_log(trt: Any) -> BuildLog:
    """A log for the binding's module ``trt``; it is an ``ILogger`` of that module too."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the base is known only at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.listing = ""
            self.activation_bytes: int | None = None

        def log(self, severity: Any, message: str) -> None:
            text = message.strip()
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(text)
            elif severity == trt.ILogger.WARNING and _EXPECTED not in text:
                self.warnings.append(text)
            elif text.startswith(LISTING):
                self.listing = text
            elif text.startswith(_ACTIVATIONS):
                self.activation_bytes = _number_after(_ACTIVATIONS, text)

    log: BuildLog = Log()
    return log


def last_error(log: BuildLog) -> str:
    """What failed last, on one line."""
    return " ".join(log.errors[-1].split())[:400] if log.errors else "it gave no reason"


def out_of_device_memory(reason: str) -> bool:
    """Whether TensorRT ran out of device memory."""
    return any(sign in reason.lower() for sign in ("out of memory", "outofmemory", "insufficient memory"))


_ACTIVATIONS = "Total Activation Memory:"
_EXPECTED = "Int64 binding"
"""What TensorRT warns of at every int64 input and output, which sessions feed as such."""


def _number_after(label: str, text: str) -> int | None:
    words = text.removeprefix(label).split()
    return int(words[0]) if words and words[0].isdecimal() else None


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
