"""What validation can be told about where things run, and batches that the engine takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from toprl_export.errors import UserError
from toprl_export.validation.bench import Bench, ValidationOptions


@pytest.mark.parametrize(
    ("device", "provider", "meant"),
    [("cpu", None, "cpu"), ("cuda", None, "cuda"), ("cuda", "tensorrt", "tensorrt"), ("cpu", "cpu", "cpu")],
)
def test_the_engine_runs_by_the_provider_named_or_by_that_of_the_device(device, provider, meant):
    assert ValidationOptions(device=device, provider=provider).engine_provider == meant


@pytest.mark.parametrize(("device", "provider"), [("cpu", "tensorrt"), ("cuda", "cpu")])
def test_a_cpu_is_not_compared_with_a_gpu(device, provider):
    with pytest.raises(UserError, match=rf"by '{provider}' and the reference on '{device}', which compares machines"):
        ValidationOptions(device=device, provider=provider)


@pytest.mark.parametrize(("session", "sizes", "batch"), [({}, (1, 2, 4), 16), ({"max_batch": 2}, (1, 2), 2)])
def test_batches_are_no_larger_than_the_engine_takes(monkeypatch, session, sizes, batch):
    samples = tuple(range(20))
    nothing = SimpleNamespace(manifest=None)
    bench = Bench(nothing, None, None, None, samples, None, None, None, SimpleNamespace(**session), None)
    monkeypatch.setattr(Bench, "_batch", lambda self, samples: len(samples))
    options = ValidationOptions()
    assert bench.throughput_batches(options) == sizes
    assert bench.batches(options.batch)[0] == batch
    assert sum(bench.batches(options.batch)) == 20
    assert sum(bench.batches(options.batch, 7)) == 7
