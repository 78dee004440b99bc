"""Progress of long work: a bar with an estimate on a terminal, else a line in the log every half minute."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

LOG_INTERVAL = 30.0
"""Seconds between two lines of the log."""

_log = logging.getLogger(__name__)


class Progress:
    """Counts steps of work, as a context manager.

    Where standard error is a terminal, a bar is drawn there and removed at the end. Elsewhere, as in the log of a CI
    job, a line goes to ``logging`` every `LOG_INTERVAL` seconds, so that long work is never silent; work that ends
    sooner says nothing.

    Args:
        description: what is done, such as "answers".
        total: how many steps there are.
        unit: a step's name in the singular.
        initial: steps that an earlier run did already.
        silent: say nothing at all, as processes beside the main one do.
    """

    def __init__(
        self, description: str, total: int, unit: str = "step", *, initial: int = 0, silent: bool = False
    ) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._initial = self._done = initial
        self._postfix = ""
        self._logs = not silent and not sys.stderr.isatty()
        self._begin = self._logged = time.monotonic()
        self._bar = tqdm(
            total=total, initial=initial, desc=description, unit=unit, leave=False, disable=silent or self._logs
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def update(self, steps: int = 1) -> None:
        """Count ``steps`` as done."""
        self._done += steps
        self._bar.update(steps)
        now = time.monotonic()
        if self._logs and now - self._logged >= LOG_INTERVAL:
            self._logged = now
            _log.info("%s", self._line(now - self._begin))

    def describe(self, description: str) -> None:
        """Say what is done from now on."""
        self._description = description
        self._bar.set_description(description)

    def postfix(self, text: str) -> None:
        """Put figures behind the count, shown with the next step."""
        self._postfix = text
        self._bar.set_postfix_str(text, refresh=False)

    def _line(self, elapsed: float) -> str:
        """One line of the log: the count, the time and what :meth:`postfix` said."""
        done_here = self._done - self._initial
        left = elapsed / done_here * (self._total - self._done) if done_here else None
        parts = [
            f"{self._description}: {self._done}/{self._total} {self._unit}s",
            f"{_clock(elapsed)} elapsed" + ("" if left is None else f", about {_clock(left)} left"),
            *([self._postfix] if self._postfix else []),
        ]
        return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
