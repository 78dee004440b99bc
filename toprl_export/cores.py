"""How many CPU cores there are, and how many threads and processes may be asked for."""

from __future__ import annotations

import os

from toprl_export.errors import UserError

PER_CORE = 4
FEWEST = 16
"""Allowed on machines of a few cores too, so that a command can be taken from one machine to another."""


def usable_cores() -> int:
    """CPU cores this process may use, which in a container may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_parallel(name: str, count: int | None) -> None:
    """Refuse a number of threads or processes that this machine could only suffer from; None is the default.

    Args:
        name: what is counted, for messages: "threads", "jobs".
        count: at least 1, at most four per core or 16, whichever is more.

    Raises:
        UserError: it is another number.
    """
    if count is None:
        return
    most = max(PER_CORE * (os.cpu_count() or 1), FEWEST)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
        raise UserError(f"{name} is {count!r}, expected a whole number from 1 to {most} on this machine")
