"""What the engine refuses, and what it says."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from tests.support.onnx_bundle import staged_bundle
from toprl_engines.graph import export
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
        (lambda r: replace(r, precision="bf16"), "precision 'bf16' is not supported .* use fp32 or fp16"),
    ],
)
def test_unsupported_requests_are_refused_before_anything_is_written(request_to_build, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        ONNXRuntimeEngine().check_request(change(request_to_build))
    with pytest.raises(UserError, match=message):
        ONNXRuntimeEngine().build(change(request_to_build), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_can_be_built_is_exported_in_its_precision(monkeypatch, request_to_build, tmp_path, precision):
    jobs = []
    monkeypatch.setattr(export, "export_graphs", lambda job, directory: jobs.append(job))
    request = replace(request_to_build, precision=precision)
    ONNXRuntimeEngine().check_request(request)
    ONNXRuntimeEngine().build(request, tmp_path)
    assert [(job.precision, job.stage_layers) for job in jobs] == [(precision, (0, 1, 2))]


def test_is_found_by_its_name_where_the_package_is_installed():
    assert isinstance(get_engine("onnx"), ONNXRuntimeEngine)


def test_a_missing_runtime_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"toprl-export\[serve-onnx\]"):
        ONNXRuntimeEngine().check()
