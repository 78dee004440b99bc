"""What a request costs: time, in rounds in which all sessions take turns, and the peak memory of a fresh process.

Run as ``python -m toprl_export.validation.costs``, this is that process: it loads one session, answers one request and
prints how much memory it took at most. It imports torch only where it measures the reference model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toprl_export.bundle import Bundle, load_bundle
from toprl_export.engine import SessionOptions, get_engine
from toprl_export.runtime.layout import PromptRow, TokenBatch, lay_out
from toprl_export.runtime.session import EngineSession, PrefillRequest
from toprl_export.validation.report import Latency

GENERATED_TOKENS = 16
_PAGEMAP_BYTES = 8
_FILE_PAGE_PRESENT = np.uint64(1 << 63 | 1 << 61)
"""Bits of Linux' /proc/self/pagemap."""
SETTLE_SECONDS = 0.02
"""Pause before each measurement: the idle threads of the library that ran last still spin for a while."""


REFERENCE, ENGINE_UNPRUNED = "reference", "engine_unpruned"
"""Names, as the report has them, of the sessions that the engine at each budget is compared with."""


@dataclass(frozen=True)
class MeasuredSession:
    """A session, and the keep counts and the agent with which it is measured."""

    session: EngineSession
    keep_counts: tuple[int, ...]
    agent_index: int


@dataclass(frozen=True)
class Workload:
    """One batch to answer: what the tower takes by name, and tokenised questions."""

    pictures: Mapping[str, NDArray[Any]]
    tokens: TokenBatch


@dataclass(frozen=True)
class RoundTimings:
    """Milliseconds in every round, ``float64 [rounds, 4]``: of the four parts that are the fields of ``Latency``."""

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
    sessions: Mapping[str, MeasuredSession],
    workload: Workload,
    warmup: int,
    iterations: int,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, RoundTimings]:
    """Time whole requests (vision, prefill and greedy decoding to 16 tokens) of every session, interleaved.

    Preprocessing and tokenising are left out: they are the same for all. Answers are not ended early.

    Args:
        sessions: by name; each answers the same workload once a round, in this order, so that whatever else the machine
            does slows all alike.
        workload: what they answer.
        warmup: rounds not counted.
        iterations: rounds counted.
        progress: called after each round.
    """
    rounds: dict[str, list[tuple[float, ...]]] = {name: [] for name in sessions}
    for number in range(warmup + iterations):
        for name, session in sessions.items():
            time.sleep(SETTLE_SECONDS)
            timed = time_request(session, workload)
            if number >= warmup:
                rounds[name].append(timed)
        progress()
    return {name: RoundTimings(np.array(timed)) for name, timed in rounds.items()}


def time_request(measured: MeasuredSession, workload: Workload) -> tuple[float, float, float, float]:
    """Milliseconds of vision, prefill, one decode step on average, and the whole of one request."""
    session, clock = measured.session, time.perf_counter
    start = clock()
    images = session.encode(workload.pictures)
    encoded = clock()
    request = PrefillRequest(workload.tokens, images, measured.keep_counts, measured.agent_index)
    result = session.prefill(request)
    prefilled = clock()
    logits = result.logits
    for _ in range(GENERATED_TOKENS - 1):
        logits = session.decode(result.cache, logits.argmax(axis=-1))
    end = clock()
    steps = (end - prefilled) / (GENERATED_TOKENS - 1)
    return (encoded - start) * 1e3, (prefilled - encoded) * 1e3, steps * 1e3, (end - start) * 1e3


def measure_throughput(
    sessions: Mapping[str, MeasuredSession], workloads: Sequence[Workload], rounds: int, progress: Callable[[], object]
) -> dict[str, tuple[float, ...]]:
    """Requests per second of every session, for each workload (which differ in batch), from median times."""
    rates: dict[str, list[float]] = {name: [] for name in sessions}
    for workload in workloads:
        timed = measure_latency(sessions, workload, warmup=1, iterations=rounds, progress=progress)
        for name, timings in timed.items():
            rates[name].append(workload.tokens.batch / timings.median.total * 1e3)
    return {name: tuple(figures) for name, figures in rates.items()}


def peak_memory(
    bundle_dir: Path,
    kind: str,
    keep_counts: Sequence[int],
    tokens: TokenBatch,
    threads: int,
    model: str,
    engine_options: Mapping[str, str],
) -> int:
    """`resident_peak` of a process that answers one question about an empty image on the CPU.

    Args:
        bundle_dir: the bundle.
        kind: "reference", "engine_unpruned" or "engine".
        keep_counts: of the engine.
        tokens: one prompt; already tokenised, as the process is not to be measured with the processor's libraries.
        threads: CPU threads.
        model: where the reference model is, which may not be where the bundle says.
        engine_options: of the session, if it is the engine's.

    Raises:
        RuntimeError: the process failed; its error output is in the message.
    """
    prompt = [tokens.input_ids[0].tolist(), int(tokens.input_ids[0, tokens.visual_index[0, 0]])]
    arguments = [str(bundle_dir), kind, ",".join(map(str, keep_counts)), json.dumps(prompt), str(threads), model]
    arguments.append(json.dumps(dict(engine_options)))
    done = subprocess.run(
        [sys.executable, "-m", "toprl_export.validation.costs", "--", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {kind} failed: {done.stderr.strip()}")
    return int(done.stdout.split()[-1])


def resident_peak() -> int:
    """The highest resident size of this process so far, in bytes, with every page counted once.

    The operating system counts a file's page as often as it is mapped, and the graphs of a bundle map the same
    weights. What is mapped several times now is subtracted, where the system tells. This is not the proportional set
    size, in which pages that another process maps too (as `validate` itself does) would count in part.
    """
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux its maximum survives exec, so a child would report its parent's peak.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 - _mapped_again()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, where there is no /proc


def _mapped_again() -> int:
    """Bytes of files that this process maps, resident, more than once; 0 if the system does not tell."""
    page = os.sysconf("SC_PAGE_SIZE")
    resident: dict[tuple[str, str], list[NDArray[np.int64]]] = {}
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            for line in Path("/proc/self/maps").read_text().splitlines():
                span, _, offset, device, inode = line.split(maxsplit=5)[:5]
                if inode == "0":
                    continue
                begin, end = (int(address, 16) // page for address in span.split("-"))
                pagemap.seek(begin * _PAGEMAP_BYTES)
                entries = np.frombuffer(pagemap.read((end - begin) * _PAGEMAP_BYTES), dtype=np.uint64)
                pages = np.flatnonzero((entries & _FILE_PAGE_PRESENT) == _FILE_PAGE_PRESENT)
                resident.setdefault((device, inode), []).append(pages + int(offset, 16) // page)
    except OSError:
        return 0
    joined = (np.concatenate(pages) for pages in resident.values())
    return page * sum(len(pages) - len(np.unique(pages)) for pages in joined)


def main() -> None:
    """Answer one request and print the peak."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("kind", choices=(REFERENCE, ENGINE_UNPRUNED, "engine"))
    parser.add_argument("keep_counts", type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("prompt", type=json.loads)
    parser.add_argument("threads", type=int)
    parser.add_argument("model")
    parser.add_argument("engine_options", type=json.loads)
    args = parser.parse_args()
    bundle = load_bundle(args.bundle, verify=False)
    session = _open(bundle, args.kind, args.threads, args.model, args.engine_options)
    ids, image_id = args.prompt
    height, width = bundle.manifest.model.image_size
    pictures = {"pixel_values": np.zeros((1, 3, height, width), np.float32)}
    workload = Workload(pictures, lay_out([PromptRow.of(ids, image_id)], image_id, pad_id=0, by_rows=False))
    time_request(MeasuredSession(session, args.keep_counts, agent_index=0), workload)
    print(resident_peak())


def _open(bundle: Bundle, kind: str, threads: int, model: str, engine_options: Mapping[str, str]) -> EngineSession:
    manifest = bundle.manifest
    if kind != REFERENCE:
        options = SessionOptions(threads, "cpu", kind == ENGINE_UNPRUNED, engine_options)
        return get_engine(manifest.engine.name).open(bundle, options)
    import torch

    from toprl_export.models.load import load_model
    from toprl_export.validation.stock import StockSession

    torch.set_num_threads(threads)
    return StockSession(load_model(model, revision=manifest.model.revision))


if __name__ == "__main__":
    main()
