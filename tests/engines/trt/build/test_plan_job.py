"""Plans that TensorRT for RTX really builds, without a GPU: what is in them, by its own log."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import onnx
import pytest

from tests.support.half_graphs import half_graphs
from tests.support.onnx_bundle import staged_bundle
from tests.support.plans import OPTIONS, build_copy, build_graph, copied, rtx
from toprl_engines.trt.build_report import GraphBuild, read_build_report
from toprl_engines.trt.engine import TensorRTEngine
from toprl_export.building import PreparedBuild, up_to_date, write_bundle
from toprl_export.bundle import load_bundle
from toprl_export.engine import GRAPHS, BuildRequest
from toprl_export.errors import UserError

pytestmark = pytest.mark.trt
pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")

LAYERS, STAGES = 2, 2


@cache
def built(precision: str, attention: str, graph: str) -> GraphBuild:
    """One graph of the tiny models, built once for all tests."""
    if precision == "fp32":
        return build_graph(staged_bundle().bundle.dir, graph, attention, full_request())
    return build_graph(half_graphs(precision).directory, graph, attention, half_graphs(precision).request())


def full_request() -> BuildRequest:
    """For the model of `staged_bundle`, in fp32."""
    bundle = staged_bundle()
    return BuildRequest(bundle.adapter, bundle.agents, bundle.bundle.manifest.plan, "fp32")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("graph", ["prefill", "decode"])
def test_every_attention_of_the_decoder_calls_the_plugin(precision, graph):
    """In fp16 the model's heads share keys and values."""
    found = built(precision, "plugin", graph)
    assert (found.kinds["attention plugin"], found.kinds["attention native"]) == (LAYERS, 0)
    assert (found.engine_kinds["attention plugin"], found.engine_kinds["attention native"]) == (LAYERS, 0)
    nodes = [layer.nodes for layer in found.engine if layer.kind == "attention plugin"]
    assert nodes == [("node_flash_attention",), ("node_flash_attention_1",)]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_native_attention_becomes_fused_kernels(precision):
    found = built(precision, "native", "prefill")
    assert (found.kinds["attention plugin"], found.kinds["attention native"]) == (0, LAYERS)
    fused = [layer for layer in found.engine if layer.kind == "attention native"]
    assert len(fused) == LAYERS and all("mha" in layer.tactic for layer in fused)
    assert fused[0].nodes == ("node_flash_attention",)


def test_native_decoding_builds():
    assert built("fp16", "native", "decode").kinds["attention native"] == LAYERS


@pytest.mark.parametrize("graph", ["prefill", "decode"])
def test_fp32_builds_by_several_kernels_an_attention(graph):
    """TensorRT has no fused attention in fp32: without the mark that the copy carries the build would fail."""
    found = built("fp32", "native", graph)
    assert found.kinds["attention native"] == 3 and found.engine_kinds["attention native"] == 0


@pytest.mark.parametrize(("precision", "attention"), [("fp16", "native"), ("bf16", "plugin"), ("fp32", "native")])
def test_stages_are_top_k_and_gather_layers(precision, attention):
    found = built(precision, attention, "prefill")
    stages = 3 if precision == "fp32" else STAGES
    assert found.kinds["top-k"] >= stages and found.kinds["gather"] >= stages
    assert found.engine_kinds["top-k"] >= stages and found.engine_kinds["gather"] >= stages
    chosen = [node for layer in found.engine if layer.kind == "top-k" for node in layer.nodes]
    assert sum("topk" in node for node in chosen) == 2 * stages  # the best, and those in their order
    assert built(precision, attention, "decode").kinds["top-k"] == 0


def test_the_profile_is_what_the_plan_and_the_limits_say():
    profile = {one.name: one for one in built("fp16", "native", "prefill").profile}
    plan = half_graphs("fp16").agents[0].record.plan
    counts = profile["keep_counts"]
    assert (counts.min, counts.max) == (plan.schedule(6).keep_counts, (25, 25))
    assert (profile["input_ids"].min, profile["input_ids"].max) == ((1, 26), (2, 57))


def _copied_graphs(job, folder: Path) -> None:
    source = half_graphs(job.precision).directory
    for name in (*(f"{graph}.onnx" for graph in GRAPHS), "weights.bin"):
        shutil.copyfile(source / name, folder / name)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """A whole bundle in fp16, from the graphs that are exported already."""
    directory = tmp_path_factory.mktemp("trt") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toprl_engines.graph.export.export_graphs", _copied_graphs)
        request = half_graphs("fp16").request(options=TensorRTEngine().resolve(OPTIONS))
        prepared = PreparedBuild(TensorRTEngine(), request, half_graphs("fp16").agent_dirs)
        write_bundle(prepared, directory, overwrite=False, command="test")
    return directory


def test_a_bundle_holds_plans_and_report_and_no_graphs(bundle):
    manifest = load_bundle(bundle).manifest
    roles = {file.role: file.path for file in manifest.files}
    assert {name: roles[name] for name in GRAPHS} == {name: f"{name}.plan" for name in GRAPHS}
    assert roles["build_report"] == "build_report.json"
    assert not any(path.endswith((".onnx", ".bin", ".cache")) for path in roles.values())
    engine = manifest.engine
    assert (engine.name, engine.precision, engine.attention) == ("trt", "fp16", "native")
    assert (engine.binding, engine.weight_stripped) == ("tensorrt_rtx", False)
    assert engine.binding_version == rtx().version and engine.gpu is None and engine.target_sms == ()
    assert engine.toolchain["tensorrt_rtx_cu13"] == rtx().version


def test_the_report_tells_of_every_graph(bundle):
    report = read_build_report(bundle / "build_report.json")
    assert list(report.graphs) == list(GRAPHS)
    assert (report.precision, report.attention, report.flags) == ("fp16", "native", ("STRONGLY_TYPED", "no TF32"))
    for name, graph in report.graphs.items():
        assert graph.plan_bytes == (bundle / f"{name}.plan").stat().st_size
        assert graph.seconds > 0 and graph.activation_bytes > 0 and graph.engine
        assert graph.kinds["attention native"] == 2 and sum(graph.kinds.values()) == graph.network_layers
    written = json.loads((bundle / "build_report.json").read_text())
    assert written["graphs"]["prefill"]["network_kinds"]["attention native"] == LAYERS


def test_the_same_request_is_a_cache_hit_and_other_options_are_not(bundle):
    engine = TensorRTEngine()
    request = half_graphs("fp16").request(options=engine.resolve(OPTIONS))

    def current(**changes) -> bool:
        options = engine.resolve(replace(OPTIONS, **changes))
        prepared = PreparedBuild(engine, replace(request, options=options), half_graphs("fp16").agent_dirs)
        return up_to_date(prepared, bundle) is not None

    assert current()
    assert not current(max_batch=3) and not current(attention="plugin") and not current(target_sms=("8.9",))


def test_chosen_targets_build(tmp_path):
    copy = copied(half_graphs("fp16").directory, "vision", "native", tmp_path)
    options = replace(OPTIONS, target_sms=("8.0", "8.9"), workspace_gib=0.25)
    assert build_copy(copy, "vision", half_graphs("fp16").request(), options).kinds["attention native"] == 2


@pytest.mark.parametrize(
    "damage",
    [lambda copy: copy.write_bytes(copy.read_bytes()[:999]), lambda copy: (copy.parent / "weights.bin").unlink()],
    ids=["cut short", "no weights"],
)
def test_what_tensorrt_cannot_read_is_one_line(tmp_path, damage: Callable[[Path], object]):
    copy = copied(half_graphs("fp16").directory, "vision", "native", tmp_path)
    damage(copy)
    with pytest.raises(UserError, match=r"cannot read vision\.tensorrt\.onnx: ..*; use another version") as caught:
        build_copy(copy, "vision", half_graphs("fp16").request())
    assert "\n" not in str(caught.value) and not (tmp_path / "a.plan").exists()


def test_what_tensorrt_cannot_build_is_one_line_with_its_last_error(tmp_path):
    """fp32 attention that may not be taken apart."""
    copy = copied(staged_bundle().bundle.dir, "decode", "native", tmp_path)
    model = onnx.load(copy, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Attention":
            del node.attribute[1:]  # the scale comes first, the mark behind it
    copy.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"cannot build decode\.tensorrt\.onnx: .*not supported by a dedicated kernel"):
        build_copy(copy, "decode", full_request())
