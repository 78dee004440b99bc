"""How long a request takes: contenders take turns, round after round, so that the machine's moods hit all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toprl_export.runtime.prompt import TokenBatch
from toprl_export.runtime.session import PrefillRequest
from toprl_export.validate.answers import Contender
from toprl_export.validate.report import Latency

GENERATED_TOKENS = 16
SETTLE_SECONDS = 0.02
"""Pause before each measurement: the idle threads of the library that ran last still spin for a while."""


@dataclass(frozen=True)
class Workload:
    """One batch to answer: pixels ``float32 [b, 3, h, w]`` and tokenised questions."""

    pixels: NDArray[np.float32]
    tokens: TokenBatch


@dataclass(frozen=True)
class Timings:
    """Milliseconds of every round, one row a round: ``float64 [rounds, 4]`` for the four fields of ``Latency``."""

    rounds: NDArray[np.float64]

    @property
    def median(self) -> Latency:
        """Each part's median."""
        return Latency(*map(float, np.median(self.rounds, axis=0)))

    @property
    def interquartile_range(self) -> Latency:
        """Each part's spread."""
        low, high = np.percentile(self.rounds, (25, 75), axis=0)
        return Latency(*map(float, high - low))


def measure_latency(
    contenders: Mapping[str, Contender],
    workload: Workload,
    warmup: int,
    iterations: int,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Timings]:
    """Time whole requests (vision, prefill and greedy decoding to 16 tokens) of every contender, interleaved.

    Preprocessing and tokenising are left out: they are the same for all. Answers are not ended early.

    Args:
        contenders: by name; each answers the same workload once a round, in this order.
        workload: what is asked.
        warmup: rounds not counted.
        iterations: rounds counted.
        progress: called after each round.
    """
    rounds: dict[str, list[tuple[float, ...]]] = {name: [] for name in contenders}
    for number in range(warmup + iterations):
        for name, contender in contenders.items():
            time.sleep(SETTLE_SECONDS)
            timed = time_request(contender, workload)
            if number >= warmup:
                rounds[name].append(timed)
        progress()
    return {name: Timings(np.array(timed)) for name, timed in rounds.items()}


def time_request(contender: Contender, workload: Workload) -> tuple[float, float, float, float]:
    """Milliseconds of vision, prefill, one decode step on average, and the whole of one request."""
    session, clock = contender.session, time.perf_counter
    start = clock()
    images = session.encode_image(workload.pixels)
    seen = clock()
    request = PrefillRequest(workload.tokens, images, contender.keep_counts, contender.agent_index)
    result = session.prefill(request)
    prefilled = clock()
    logits = result.logits
    for _ in range(GENERATED_TOKENS - 1):
        logits = session.decode(result.cache, logits.argmax(axis=-1))
    end = clock()
    steps = (end - prefilled) / (GENERATED_TOKENS - 1)
    return (seen - start) * 1e3, (prefilled - seen) * 1e3, steps * 1e3, (end - start) * 1e3


def measure_throughput(
    contenders: Mapping[str, Contender], workloads: Sequence[Workload], rounds: int, progress: Callable[[], object]
) -> dict[str, tuple[float, ...]]:
    """Requests per second of every contender, for each workload (which differ in batch), from median times."""
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for workload in workloads:
        timed = measure_latency(contenders, workload, warmup=1, iterations=rounds, progress=progress)
        for name, timings in timed.items():
            measured[name].append(workload.tokens.batch / timings.median.total * 1e3)
    return {name: tuple(figures) for name, figures in measured.items()}
