"""Times of candidates that take turns, so that changes of clock rate and load affect all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

from ci.gpu.context import NotRun, one_line

Run = Callable[[], object]
Prepare = Callable[[], Run]
Times = dict[str, list[float]]
"""Milliseconds of every round, by candidate."""


def elapsed_ms(run: Run, device: str) -> float:
    """Milliseconds that ``run`` takes: on a GPU from one event before it to one behind all that it has launched, which
    is also what a caller waits; on a CPU by the wall clock."""
    if device != "cuda":
        began = time.perf_counter()
        run()
        return (time.perf_counter() - began) * 1e3
    event: Any = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def take_turns(
    candidates: Mapping[str, Prepare], device: str, rounds: tuple[int, int], seconds: float, warmup: int
) -> Times:
    """Time every candidate once a round.

    Args:
        candidates: by name; each prepares anew, before the clock starts, what is to be timed.
        device: "cuda" or "cpu".
        rounds: minimum and maximum.
        seconds: after which no further round begins, once the minimum is done.
        warmup: rounds before, which are not counted.
    """
    times: Times = {name: [] for name in candidates}
    minimum, maximum = rounds
    started = time.monotonic()
    for number in range(warmup + maximum):
        if number >= warmup + minimum and time.monotonic() - started > seconds:
            break
        for name, prepare in candidates.items():
            spent = elapsed_ms(prepare(), device)
            if number >= warmup:
                times[name].append(spent)
    return times


def capture(work: Run, calls: int = 1) -> Run:
    """Record what ``calls`` calls of ``work`` launch as a CUDA graph, after a warm-up call on a side stream.

    Raises:
        NotRun: it does what cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    stream: Any = torch.cuda.Stream
    side = stream()
    try:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            output = [work() for _ in range(calls)]
    except RuntimeError as error:
        raise NotRun(f"cannot be captured ({one_line(error)})") from error

    def replay() -> object:
        graph.replay()
        # The tensors that the graph reads and writes must live as long as it does.
        return work, output

    return replay


def ratio(times: Times, slow: str, fast: str) -> float:
    """How many times faster one candidate is than another: the median over the rounds' own ratios."""
    return median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def fastest(times: Times, names: Sequence[str]) -> str:
    """Whichever of ``names`` has the smallest median."""
    return min(names, key=lambda name: median(times[name]))
