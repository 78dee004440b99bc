"""What the command line says of the engine onnx."""

from __future__ import annotations

import onnxruntime
import pytest

from toprl_engines.ort import flags, providers
from toprl_engines.ort.flags import ONNXRuntimeCommandLine


@pytest.mark.parametrize(
    ("listed", "plugin", "names"),
    [
        (["CPUExecutionProvider"], False, ["cpu"]),
        (["AzureExecutionProvider", "CPUExecutionProvider"], True, ["cpu", "tensorrt-rtx"]),
        (
            ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
            False,
            ["cpu", "cuda", "tensorrt"],
        ),
    ],
)
def test_providers_are_shown_by_the_names_that_users_write(monkeypatch, listed, plugin, names):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(providers, "find_spec", lambda name: object() if plugin else None)
    engine = ONNXRuntimeCommandLine()
    found = engine.diagnose()
    version = onnxruntime.__version__
    assert found == {"version": version, "providers": listed, "provider_names": names}
    assert set(names) <= set(engine.providers) == set(providers.PROVIDERS)
    assert engine.describe_diagnosis(found) == [f"onnxruntime {version}: --provider {', '.join(names)}"]


def test_options_for_running_and_their_values():
    assert dict(ONNXRuntimeCommandLine().run_options) == {"packing": ("cache", "memory", "off")}


def test_without_onnx_runtime_it_still_reports(monkeypatch):
    monkeypatch.setattr(flags, "find_spec", lambda name: None)
    engine = ONNXRuntimeCommandLine()
    assert engine.describe_diagnosis(engine.diagnose()) == ["onnxruntime: not installed"]


def test_it_has_no_options_details_or_files_of_its_own():
    engine = ONNXRuntimeCommandLine()
    assert (list(engine.build_options), engine.options({}), engine.describe_details({}), dict(engine.readers)) == (
        [],
        None,
        [],
        {},
    )
