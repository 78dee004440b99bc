"""Loading: the TensorRT and the GPU that plans were built for, their plugin, and what the fake promises of the real."""

from __future__ import annotations

import signal
from dataclasses import replace

import numpy as np
import pytest

from tests.support import fake_tensorrt
from tests.support.fake_device import FakeDevice
from tests.support.fake_tensorrt import fake_binding
from tests.support.onnx_bundle import staged_bundle
from tests.support.trt_bundle import PlanLimits, plans_of
from toprl_engines.trt.binding import load_binding
from toprl_engines.trt.compiled import Compiled
from toprl_engines.trt.run import engines
from toprl_engines.trt.run.session import TensorRTSession
from toprl_export.bundle import Bundle, file_entries
from toprl_export.engine import SessionOptions
from toprl_export.errors import UserError

LIBRARY = "libtoprl_flash_attention_plugin.so"


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    return plans_of(staged_bundle(), tmp_path / "bundle")


def with_engine(bundle: Bundle, **changes) -> Bundle:
    """The bundle with other details of how its plans are compiled."""
    engine = bundle.manifest.engine
    engine = replace(engine, details=replace(Compiled.from_details(engine.details), **changes).to_details())
    return Bundle(bundle.dir, replace(bundle.manifest, engine=engine))


def with_plugin(bundle: Bundle, content: bytes) -> Bundle:
    (bundle.dir / LIBRARY).write_bytes(content)
    listed = (*bundle.manifest.files, *file_entries(bundle.dir, [("plugin", LIBRARY)]))
    return with_engine(Bundle(bundle.dir, replace(bundle.manifest, files=listed)), attention="plugin")


def opened(bundle: Bundle, device: FakeDevice, binding=None) -> TensorRTSession:
    return TensorRTSession(bundle, SessionOptions(), binding=binding or fake_binding(device), device=device)


def test_another_gpu_is_refused(bundle):
    with pytest.raises(UserError, match=r"built for compute capability 8\.9, but NVIDIA H200 has .* 9\.0"):
        opened(bundle, FakeDevice("NVIDIA H200", "9.0"))


@pytest.mark.parametrize(("name", "version"), [("tensorrt_rtx", "1.7.1"), ("tensorrt", "11.9.0")])
def test_another_tensorrt_is_refused(bundle, name, version):
    device = FakeDevice()
    with pytest.raises(UserError, match=rf"built by {name} {version}"):
        opened(with_engine(bundle, binding=name, binding_version=version), device)


def test_a_plan_for_later_versions_may_run_its_own_code(bundle):
    device = FakeDevice()
    runtimes = []

    class Runtime(fake_tensorrt.Runtime):
        def __init__(self, logger):
            super().__init__(logger)
            runtimes.append(self)

    for compatible in (False, True):
        binding = fake_binding(device)
        binding.module.Runtime = Runtime
        opened(with_engine(bundle, version_compatible=compatible), device, binding)
    assert [runtime.engine_host_code_allowed for runtime in runtimes] == [False, True]


def test_the_plugin_is_loaded_once_a_process(bundle):
    device = FakeDevice()
    binding = fake_binding(device)
    built = with_plugin(bundle, b"\x7fELF")
    sessions = [opened(built, device, binding) for _ in range(2)]
    assert binding.module.get_plugin_registry().loaded == [str(bundle.dir / LIBRARY)]
    request = staged_bundle().request((13, 9, 4))
    first, second = (session.prefill(request).logits for session in sessions)
    assert np.array_equal(first, second)


def test_native_attention_loads_no_plugin(bundle):
    device = FakeDevice()
    binding = fake_binding(device)
    opened(bundle, device, binding)
    assert not binding.module.get_plugin_registry().loaded


def test_without_a_library_the_plugins_python_route_is_taken(monkeypatch, bundle):
    taken = []
    monkeypatch.setattr(engines, "register_plugin", lambda binding, library: taken.append(library))
    opened(with_engine(bundle, attention="plugin"), FakeDevice())
    opened(with_plugin(bundle, b"\x7fELF"), FakeDevice())
    assert taken == [None, bundle.dir / LIBRARY]


def test_stripped_plans_get_their_weights_from_the_bundles_graphs(monkeypatch, bundle):
    listed = [*bundle.manifest.files]
    for role in ("vision", "prefill", "decode"):
        (bundle.dir / f"{role}.trt.onnx").write_bytes(b"graph")
        listed += file_entries(bundle.dir, [(f"refit_{role}", f"{role}.trt.onnx")])
    filled = []

    def refit(binding, engine, graph, log):
        assert engine.num_io_tensors and isinstance(log.errors, list)
        filled.append(graph.name)

    monkeypatch.setattr(engines, "refit_engine", refit)
    stripped = with_engine(Bundle(bundle.dir, replace(bundle.manifest, files=tuple(listed))), weight_stripped=True)
    opened(stripped, FakeDevice())
    assert filled == ["vision.trt.onnx", "prefill.trt.onnx", "decode.trt.onnx"]
    opened(bundle, FakeDevice())
    assert len(filled) == 3


def test_a_driver_that_is_too_old_for_tensorrt_is_one_line(bundle):
    device = FakeDevice()
    binding = fake_binding(device)

    def runtime(log):
        log.log(fake_tensorrt.ILogger.ERROR, "CUDA driver version is\ninsufficient")
        raise TypeError("factory function returned nullptr")

    binding.module.Runtime = runtime
    message = r"tensorrt 11\.2\.0\.4 cannot start: CUDA driver version is insufficient; check the GPU"
    with pytest.raises(UserError, match=message):
        opened(bundle, device, binding)


def test_weights_that_find_no_memory_are_told_from_a_plan_that_is_broken(bundle, monkeypatch):
    def fails(runtime, plan):
        runtime.logger.log(fake_tensorrt.ILogger.ERROR, "Error Code 2: OutOfMemory (Requested size was 13 GB)")

    monkeypatch.setattr(fake_tensorrt.Runtime, "deserialize_cuda_engine", fails)
    with pytest.raises(UserError, match=r"cannot load .*vision\.plan: .*OutOfMemory.*; stop what else uses the GPU"):
        opened(bundle, FakeDevice())


def test_ctrl_c_while_tensorrt_loads_is_minded_when_it_has_loaded(bundle, monkeypatch):
    real, loaded = fake_tensorrt.Runtime.deserialize_cuda_engine, []

    def pressed(runtime, plan):
        signal.raise_signal(signal.SIGINT)
        loaded.append(real(runtime, plan))
        return loaded[-1]

    monkeypatch.setattr(fake_tensorrt.Runtime, "deserialize_cuda_engine", pressed)
    with pytest.raises(KeyboardInterrupt):
        opened(bundle, FakeDevice())
    assert len(loaded) == 1


def test_a_plugin_that_cannot_be_loaded(bundle):
    with pytest.raises(UserError, match=rf"cannot load the plugin .*{LIBRARY}: .* --attention native"):
        opened(with_plugin(bundle, b"not a library"), FakeDevice())


def test_without_a_gpu_the_real_device_is_refused(tmp_path):
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU")
    bundle = plans_of(staged_bundle(), tmp_path / "bundle", PlanLimits())
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        TensorRTSession(bundle, SessionOptions(), binding=fake_binding(FakeDevice()))


@pytest.fixture
def real_trt():
    """The module of the TensorRT that is installed."""
    try:
        return load_binding().module
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.trt
@pytest.mark.parametrize("name", ["ICudaEngine", "IExecutionContext", "IRuntimeConfig", "IPluginRegistry", "Runtime"])
def test_the_fake_offers_nothing_that_tensorrt_lacks(real_trt, name):
    fake, real = getattr(fake_tensorrt, name), getattr(real_trt, name)
    used = [one for one, value in vars(fake).items() if callable(value) or isinstance(value, property)]
    own = {"dtype"}
    missing = [one for one in used if not one.startswith("_") and one not in own and not hasattr(real, one)]
    assert not missing


@pytest.mark.trt
def test_the_fake_names_things_as_tensorrt_does(real_trt):
    for name in ("DataType", "TensorIOMode", "TensorLocation", "ExecutionContextAllocationStrategy"):
        for member in getattr(fake_tensorrt, name):
            assert getattr(getattr(real_trt, name), member.name).name == member.name
    assert int(real_trt.ILogger.ERROR) == fake_tensorrt.ILogger.ERROR
