"""What the engine chooses, refuses and promises, before TensorRT is called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.engines.trt.build.test_builder import TRT
from tests.support.tiny_llava import tiny_adapter
from toprl_engines.trt import engine as engine_module
from toprl_engines.trt.binding import Binding
from toprl_engines.trt.compiled import GpuEntry
from toprl_engines.trt.engine import TensorRTEngine
from toprl_engines.trt.options import TensorRTOptions
from toprl_export.bundle import FileEntry
from toprl_export.engine import BuildRequest, ConfigurableEngine
from toprl_export.errors import UserError
from toprl_export.pruning.baselines.specs import baseline_plan
from toprl_export.pruning.plan import SHARE_UNITS

BINDINGS = {name: Binding(name, TRT, version) for name, version in (("tensorrt", "11.4.0"), ("tensorrt_rtx", "1.7.1"))}
ADA = GpuEntry("RTX 4090", "8.9", "580.95")


@pytest.fixture
def machine(monkeypatch):
    """A function that sets the machine's GPU; both bindings are installed."""
    monkeypatch.setattr(engine_module, "load_binding", lambda name=None: BINDINGS[name or "tensorrt"])

    def have(gpu: GpuEntry | None) -> TensorRTEngine:
        monkeypatch.setattr(engine_module, "find_gpu", lambda: gpu)
        return TensorRTEngine()

    return have


def request_for(precision: str = "fp16", options: TensorRTOptions | None = None, **changes) -> BuildRequest:
    adapter = tiny_adapter(layers=2)
    plan = baseline_plan("uniform", adapter.visual_tokens, 2, (12, 6), (0, 1))
    return BuildRequest(adapter, (), plan, precision, baseline="uniform", options=options, **changes)


def test_it_is_an_engine_with_options_of_its_own():
    assert isinstance(TensorRTEngine(), ConfigurableEngine)


def test_choices_that_are_left_to_it(machine, tmp_path: Path):
    library = tmp_path / "plugin.so"
    library.touch()
    engine = machine(None)
    chosen = engine.resolve(TensorRTOptions())
    assert (chosen.binding, chosen.attention, chosen.target_sms) == ("tensorrt", "native", ())
    assert engine.resolve(TensorRTOptions(plugin_library=library)).attention == "plugin"
    assert engine.resolve(TensorRTOptions(binding="tensorrt_rtx")).binding == "tensorrt_rtx"
    assert engine.resolve(TensorRTOptions(attention="plugin")).plugin_library is None


def test_full_tensorrt_builds_for_the_gpu_at_hand_so_another_gpu_is_another_build(machine):
    engine = machine(ADA)
    here = engine.resolve(TensorRTOptions())
    assert here.target_sms == ("8.9",)
    assert engine.resolve(here) == here
    assert engine.resolve(TensorRTOptions(binding="tensorrt_rtx")).target_sms == ()
    assert engine.resolve(TensorRTOptions(hardware_compatible=True)).target_sms == ()
    elsewhere = machine(replace(ADA, sm="9.0")).resolve(TensorRTOptions())
    assert elsewhere.identity != here.identity


RTX = {"binding": "tensorrt_rtx"}


@pytest.mark.parametrize(
    ("gpu", "given", "message"),
    [
        (ADA, {"target_sms": ("9.0",)}, "builds only for the GPU at hand, 8.9, not for 9.0: leave --target-sm out"),
        (None, {"target_sms": ("8.9",)}, "builds only for the GPU at hand, not for 8.9"),
        (None, {**RTX, "target_sms": ("9.0",)}, "builds for compute capability 7.5, 8.9, 12.0, not 9.0"),
        (ADA, {**RTX, "version_compatible": True}, "--version-compatible needs TensorRT's lean runtime"),
        (ADA, {**RTX, "hardware_compatible": True}, "from Ampere on by itself: leave --hardware-compatible out"),
        (None, {**RTX, "weight_stripped": True}, "compile on a GPU, and this machine has none"),
        (None, {**RTX, "refittable": True}, "compile on a GPU, and this machine has none"),
        (None, {"plugin_library": Path("nowhere.so")}, "nowhere.so does not exist: build it with"),
    ],
)
def test_what_the_binding_cannot_do_is_refused(machine, gpu, given, message):
    with pytest.raises(UserError, match=message):
        machine(gpu).resolve(TensorRTOptions(**given))


def test_what_it_can_do_passes(machine):
    engine = machine(ADA)
    engine.resolve(TensorRTOptions(**RTX, weight_stripped=True, refittable=True))
    engine.resolve(TensorRTOptions(**RTX, target_sms=("7.5", "8.9")))
    engine.resolve(TensorRTOptions(version_compatible=True, hardware_compatible=True, target_sms=()))
    engine.resolve(TensorRTOptions(target_sms=("8.9",)))


PLUGIN = TensorRTOptions(attention="plugin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "fp32", "options": PLUGIN}, "computes fp16 and bf16, not fp32: use --attention native"),
        ({"options": replace(PLUGIN, version_compatible=True)}, "does not know the plugin: use --attention native"),
    ],
)
def test_requests_that_cannot_be_built_are_refused_and_nothing_is_written(machine, tmp_path, change, message):
    engine, request = machine(ADA), replace(request_for(), **change)
    for attempt in (lambda: engine.check_request(request), lambda: engine.build(request, tmp_path)):
        with pytest.raises(UserError, match=message):
            attempt()
    assert not list(tmp_path.iterdir())


def test_heads_without_a_kernel_and_too_many_tokens_are_refused(machine):
    engine, request = machine(ADA), request_for(options=PLUGIN)
    odd = SimpleNamespace(shape=replace(request.adapter.shape, head_dim=80))
    with pytest.raises(UserError, match="heads of 64 or 128, and this model's have 80: use --attention native"):
        engine.check_request(replace(request, adapter=odd))
    many = baseline_plan("uniform", 6000, 2, (5000,), (0, 1))
    with pytest.raises(UserError, match="TensorRT selects at most 3840: choose a smaller budget"):
        engine.check_request(replace(request, plan=many))


def test_pictures_that_differ_in_their_number_of_visual_tokens_are_refused(machine):
    engine, request = machine(ADA), request_for()
    plan = replace(baseline_plan("fastv-p", SHARE_UNITS, 2, (3333,), (0, 1)), shares=True)
    with pytest.raises(UserError, match="differ in it: use --engine onnx"):
        engine.check_request(replace(request, plan=plan, adapter=SimpleNamespace(family="qwen2_vl")))


def test_full_tensorrt_needs_a_gpu_to_build_and_none_to_say_what_it_would(machine, tmp_path):
    engine, request = machine(None), request_for()
    engine.check_request(request)
    assert engine.preview(request)["binding"] == "tensorrt 11.4.0"
    with pytest.raises(UserError, match="full TensorRT builds on an NVIDIA GPU, and this machine has none"):
        engine.build(request, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_preview_says_all_that_the_build_would_use(machine):
    options = TensorRTOptions(max_batch=2, max_text=10, workspace_gib=1.5)
    found = machine(ADA).preview(request_for("fp32", options))
    assert found["gpu"] == {"name": "RTX 4090", "sm": "8.9", "driver": "580.95"}
    assert (found["attention"], found["plugin_library"], found["workspace_gib"]) == ("native", None, 1.5)
    assert found["flags"] == ["STRONGLY_TYPED", "no TF32"]
    assert list(found["profiles"]) == ["vision", "prefill", "decode", "prefill_unpruned"]
    ids = next(one for one in found["profiles"]["prefill"] if one["name"] == "input_ids")
    assert ids == {"name": "input_ids", "values": False, "min": (1, 26), "opt": (1, 27), "max": (2, 35)}


def test_flops_are_counted_only_in_a_graph_that_is_there():
    files = (FileEntry("prefill.plan", "a" * 64, 1, "prefill"),)
    bundle = SimpleNamespace(manifest=SimpleNamespace(files=files))
    assert TensorRTEngine().graph_flops(bundle, 1, 40, (12, 6)) is None
