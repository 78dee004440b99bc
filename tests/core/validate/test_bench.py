"""What validation can be told about where things run."""

from __future__ import annotations

import pytest

from toprl_export.errors import UserError
from toprl_export.validate.bench import ValidationOptions


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
