"""Plans of single graphs, built by TensorRT for RTX, which needs no GPU for it."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from toprl_engines.trt.binding import Binding, load_binding
from toprl_engines.trt.build.builder import PlanBuilder
from toprl_engines.trt.build.plan_job import PlanJob
from toprl_engines.trt.build_report import GraphBuild
from toprl_engines.trt.options import TensorRTOptions
from toprl_engines.trt.passes.copies import write_copy
from toprl_engines.trt.plugin import register_plugin
from toprl_export.engine import BuildRequest

OPTIONS = TensorRTOptions(binding="tensorrt_rtx", attention="native", max_batch=2, max_text=32, max_new_tokens=16)


def rtx() -> Binding:
    """TensorRT for RTX; it knows the plugin by its Python route, which takes nothing to be built in."""
    binding = load_binding("tensorrt_rtx")
    register_plugin(binding, None)
    return binding


def copied(source: Path, graph: str, attention: str, folder: Path) -> Path:
    """TensorRT's copy of a canonical graph in ``source``, in ``folder`` and beside the same weights."""
    shutil.copyfile(source / f"{graph}.onnx", folder / f"{graph}.onnx")
    (folder / "weights.bin").hardlink_to(source / "weights.bin")
    return write_copy(folder / f"{graph}.onnx", attention)


def build_copy(copy: Path, graph: str, request: BuildRequest, options: TensorRTOptions = OPTIONS) -> GraphBuild:
    """Build a copy into ``a.plan`` beside it."""
    job = PlanJob(request, options, rtx())
    return PlanBuilder(job.binding, job.settings, None).build(copy, job.profiles()[graph], copy.with_name("a.plan"))


def build_graph(source: Path, graph: str, attention: str, request: BuildRequest) -> GraphBuild:
    """Build a canonical graph of ``source``; only what is told of the plan stays."""
    with tempfile.TemporaryDirectory(prefix="toprl-plan-") as folder:
        copy = copied(source, graph, attention, Path(folder))
        return build_copy(copy, graph, request, replace(OPTIONS, attention=attention))
