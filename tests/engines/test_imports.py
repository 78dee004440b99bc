"""What must be importable without the packages that only building needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

BUILDING = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript")
RUNNING = ("onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "ml_dtypes")


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("toprl_engines.ort.flags", (*BUILDING, *RUNNING)),
        ("toprl_engines.trt.flags", (*BUILDING, *RUNNING)),
        ("toprl_engines.ort.engine", (*BUILDING, *RUNNING)),
        ("toprl_engines.trt.engine", (*BUILDING, *RUNNING)),
        ("toprl_engines.ort.session", BUILDING),
        ("toprl_engines.trt.run.session", (*BUILDING, "tensorrt", "tensorrt_rtx", "cuda")),
    ],
)
def test_a_module_imports_only_what_it_is_for(module, heavy):
    """The command line's parts are light, and a machine that only runs bundles has nothing to build them with."""
    code = f"import sys, {module}; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
