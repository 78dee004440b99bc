"""Latency, by a clock that the test winds: what is run, in which order, and how the figures are made. Peak memory, as
the operating system tells it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.support.fake_engine import made_up_bundle
from tests.support.tiny_llava import tiny_adapter, tiny_tokens
from toprl_export.bundle import write_manifest
from toprl_export.models.load import load_model
from toprl_export.runtime.layout import TokenBatch
from toprl_export.runtime.session import EncodedImages, PrefillResult
from toprl_export.validation import costs
from toprl_export.validation.costs import (
    MeasuredSession,
    RoundTimings,
    Workload,
    measure_latency,
    measure_throughput,
    peak_memory,
)
from toprl_export.validation.report import Latency

SIZE = 64 * 2**20


class Clock:
    """Time passes only when a session works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.log: list[str] = []
        monkeypatch.setattr(costs.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(costs.time, "sleep", lambda seconds: None)


class FakeSession:
    """Each part takes its own time; prefill also 1 s per kept token."""

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock, self._name = clock, name

    def encode(self, pictures):
        self._clock.now += 0.25
        self._clock.log.append(f"{self._name}.vision")
        return EncodedImages(np.zeros((len(pictures["pixel_values"]), 4, 2), np.float32))

    def prefill(self, request):
        self._clock.now += sum(request.keep_counts)
        self._clock.log.append(f"{self._name}.prefill")
        return PrefillResult(np.eye(1, 5, 3, dtype=np.float32).repeat(request.tokens.batch, 0), [], ())

    def decode(self, cache, tokens):
        assert tokens.tolist() == [3] * len(tokens)
        self._clock.now += 0.5
        cache.append("step")
        self._clock.log.append(f"{self._name}.decode")
        return np.eye(1, 5, 3, dtype=np.float32).repeat(len(tokens), 0)


def workload(batch: int) -> Workload:
    ids = np.zeros((batch, 6), np.int64)
    return Workload(
        {"pixel_values": np.zeros((batch, 3, 8, 8), np.float32)}, TokenBatch(ids, ids, ids, ids[:, :4], ids[:, :2])
    )


def test_sessions_take_turns_and_warm_up_is_not_counted(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    sessions = {
        "a": MeasuredSession(FakeSession(clock, "a"), (4, 4), 0),
        "b": MeasuredSession(FakeSession(clock, "b"), (2, 1), 0),
    }
    timings = measure_latency(sessions, workload(1), warmup=2, iterations=3)
    visions = [entry for entry in clock.log if entry.endswith("vision")]
    assert visions == ["a.vision", "b.vision"] * 5
    assert clock.log.count("a.decode") == 5 * 15
    assert timings["a"].rounds.shape == (3, 4)
    assert timings["a"].median == Latency(250, 8000, 500, 15750)
    assert timings["b"].median.prefill == 3000
    assert timings["b"].interquartile_range.total == 0


def test_medians_and_spreads():
    timings = RoundTimings(np.array([[1.0, 10, 2, 20], [2, 20, 2, 30], [9, 90, 2, 99]]))
    assert timings.median == Latency(2, 20, 2, 30)
    assert timings.interquartile_range == Latency(4, 40, 0, 39.5)


def test_throughput_is_requests_per_second(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    sessions = {"a": MeasuredSession(FakeSession(clock, "a"), (2,), 0)}
    figures = measure_throughput(sessions, [workload(1), workload(4)], rounds=2, progress=lambda: None)
    total = 0.25 + 2 + 15 * 0.5
    assert figures["a"] == pytest.approx((1 / total, 4 / total))


def in_fresh_process(script: str) -> list[int]:
    command = [sys.executable, "-c", f"from toprl_export.validation.costs import resident_peak\n{script}"]
    return [int(word) for word in subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()]


def test_the_peak_grows_by_what_is_touched_and_stays():
    before, during, after = in_fresh_process(
        f"print(resident_peak())\nblock = bytearray(b'x') * {SIZE}\nprint(resident_peak())\n"
        "del block\nprint(resident_peak())"
    )
    assert SIZE <= during - before < 1.2 * SIZE
    assert after > during - SIZE / 10  # the kernel counts pages in batches


def test_a_page_of_a_file_counts_once_however_often_it_is_mapped(tmp_path):
    (tmp_path / "file").write_bytes(bytes(SIZE))
    (tmp_path / "other").write_bytes(bytes(SIZE))
    script = f"""
import mmap
kept = []
print(resident_peak())
for name in ("file", "file", "other"):
    with open({str(tmp_path)!r} + "/" + name, "rb") as stream:
        kept.append(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    sum(kept[-1][::4096])
    print(resident_peak())
"""
    before, once, twice, other = in_fresh_process(script)
    assert once - before == pytest.approx(SIZE, rel=0.1)
    assert abs(twice - once) < SIZE / 10
    assert other - twice == pytest.approx(SIZE, rel=0.1)


def test_a_child_does_not_inherit_the_peak():
    block = np.ones(2 * SIZE, np.uint8)
    assert in_fresh_process("print(resident_peak())")[0] < block.nbytes


def test_the_reference_is_measured_where_it_is_now(tmp_path):
    bundle, tokens = made_up_bundle(tmp_path), load_model("mini").frontend.tokens(["what is it?"])
    pictures = bundle.manifest.model.frontend | {"image_height": 192, "image_width": 192}
    moved = replace(bundle.manifest.model, id="/gone/model", frontend=pictures)
    write_manifest(tmp_path, replace(bundle.manifest, model=moved))
    assert peak_memory(tmp_path, "reference", (1,), tokens, 1, "mini", {}) > SIZE
    with pytest.raises(RuntimeError, match="the model directory /gone/model is not there"):
        peak_memory(tmp_path, "reference", (1,), tokens, 1, moved.id, {})


def test_a_failed_process_is_told(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)memory of engine failed.*expected a bundle"):
        peak_memory(tmp_path, "engine", (1,), tiny_tokens(tiny_adapter(), 1), 1, "mini", {})
