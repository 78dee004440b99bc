"""What the engine refuses, and what it says."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from tests.support.onnx_bundle import staged_bundle
from toprl_engines.ort.engine import ONNXRuntimeEngine
from toprl_export.engine import BuildRequest, get_engine
from toprl_export.errors import MissingExtraError, UserError


@pytest.fixture
def request_to_build() -> BuildRequest:
    built = staged_bundle()
    return BuildRequest(built.adapter, built.agents, built.bundle.manifest.plan, "fp32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: replace(r, precision="fp16"), "precision 'fp16' is not supported"),
        (lambda r: replace(r, opset=20), "opset 20 is not supported .* use 23"),
    ],
)
def test_unsupported_requests_are_refused_before_anything_is_written(request_to_build, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        ONNXRuntimeEngine().check_request(change(request_to_build))
    with pytest.raises(UserError, match=message):
        ONNXRuntimeEngine().build(change(request_to_build), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_can_be_built_passes(request_to_build):
    ONNXRuntimeEngine().check_request(request_to_build)


def test_is_found_by_its_name_where_the_package_is_installed():
    assert isinstance(get_engine("onnx"), ONNXRuntimeEngine)


def test_a_missing_runtime_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"toprl-export\[onnx\]"):
        ONNXRuntimeEngine().check()
