"""A stand-in for torch's side of a GPU, so that what is done only there is done once before a GPU is paid for."""

from __future__ import annotations

import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch


class FakeEvent:
    """Takes the time when it is recorded."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: FakeEvent) -> float:
        return (end.at - self.at) * 1e3


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Events, streams, graphs and memory counters that need no GPU; returns the calls that graphs got."""
    calls: list[str] = []

    class FakeGraph:
        def replay(self) -> None:
            calls.append("replay")

    @contextmanager
    def recording(graph: FakeGraph):
        calls.append("record")
        yield

    @contextmanager
    def on_stream(stream: object):
        yield

    def make_stream() -> SimpleNamespace:
        return SimpleNamespace(wait_stream=lambda other: None, cuda_stream=7)

    for name, value in {
        "Event": FakeEvent,
        "CUDAGraph": FakeGraph,
        "graph": recording,
        "Stream": make_stream,
        "stream": on_stream,
        "current_stream": make_stream,
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 1 << 30,
        "max_memory_allocated": lambda: 3 << 30,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return calls
