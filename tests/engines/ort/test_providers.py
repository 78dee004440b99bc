"""Where ONNX Runtime runs: names, refusals, fallbacks, and the options of each provider."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.support.onnx_bundle import grouped_bundle, staged_bundle
from toprl_engines.ort import providers
from toprl_engines.ort import session as session_module
from toprl_engines.ort.engine import ONNXRuntimeEngine
from toprl_engines.ort.providers import (
    PROVIDERS,
    RTX_PACKAGE,
    cache_dir,
    choose_provider,
    installed_providers,
    provider_chain,
    provider_settings,
)
from toprl_engines.ort.session import ProviderChoice, open_session
from toprl_export.bundle import Bundle
from toprl_export.engine import SessionOptions
from toprl_export.errors import UserError

FULL = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def listed(monkeypatch):
    """Lets ONNX Runtime say that it was built with others, with or without NVIDIA's plugin beside it."""

    def listing(names: list[str], plugin: bool = False) -> None:
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
        monkeypatch.setattr(providers, "find_spec", lambda name: object() if plugin else None)

    return listing


@pytest.mark.parametrize(
    ("names", "plugin", "found"),
    [
        (["AzureExecutionProvider", "CPUExecutionProvider"], False, ("cpu",)),
        (FULL, False, ("cpu", "cuda", "tensorrt")),
        (["CPUExecutionProvider"], True, ("cpu", "tensorrt-rtx")),
        (["NvTensorRTRTXExecutionProvider", "CPUExecutionProvider"], False, ("cpu", "tensorrt-rtx")),
    ],
)
def test_what_is_installed_is_listed_by_our_names(listed, names, plugin, found):
    listed(names, plugin)
    assert installed_providers() == found


@pytest.mark.parametrize(("names", "chosen"), [(["CPUExecutionProvider"], "cpu"), (FULL, "cuda")])
def test_without_a_name_cuda_is_taken_where_it_is_installed_and_tensorrt_never(listed, names, chosen):
    listed(names, plugin=True)
    assert choose_provider(None) == chosen


def test_onnx_runtimes_own_names_are_known_too(listed):
    listed(FULL, plugin=True)
    assert [choose_provider(full) for full in PROVIDERS.values()] == list(PROVIDERS)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown provider 'tensort'; did you mean 'tensorrt'\? known: cpu, cuda"):
        choose_provider("tensort")


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("cuda", r"toprl-export\[gpu\] in place of \[onnx\]"),
        ("tensorrt", r"\[gpu\] in place of \[onnx\] and \[serve-onnx\], and TensorRT"),
        ("tensorrt-rtx", "onnxruntime-ep-nv-tensorrt-rtx"),
    ],
)
def test_what_is_not_installed_says_how_to_install_it(listed, name, how):
    listed(["CPUExecutionProvider"])
    with pytest.raises(UserError, match=rf"provider '{name}' is not available, this ONNX Runtime offers cpu: .*{how}"):
        choose_provider(name)


def test_each_provider_is_backed_by_what_can_run_the_rest_and_cuda_computes_fp32_in_fp32(listed):
    listed(FULL)
    options, cuda = {"trt_engine_cache_enable": "1"}, ("CUDAExecutionProvider", {"use_tf32": "0"})
    assert provider_chain("cpu") == [("CPUExecutionProvider", {})]
    assert provider_chain("cuda") == [cuda, ("CPUExecutionProvider", {})]
    assert provider_chain("tensorrt", options) == [
        ("TensorrtExecutionProvider", options),
        cuda,
        ("CPUExecutionProvider", {}),
    ]
    listed(["NvTensorRTRTXExecutionProvider", "CPUExecutionProvider"])
    assert [name for name, _ in provider_chain("tensorrt-rtx")] == [
        "NvTensorRTRTXExecutionProvider",
        "CPUExecutionProvider",
    ]


@pytest.fixture
def cuda_without_a_gpu(listed) -> None:
    """As with onnxruntime-gpu on a machine without a GPU: all are listed, and sessions fall back to the CPU."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    listed(FULL)


@pytest.mark.usefixtures("cuda_without_a_gpu")
@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_cannot_start_is_refused_when_asked_for(tmp_path, provider):
    bundle = staged_bundle().bundle
    message = rf"'{provider}' was requested, but ONNX Runtime could not start it \(it fell back to 'cpu'\)"
    with pytest.raises(UserError, match=message):
        open_session(bundle.path("decode"), onnxruntime.SessionOptions, ProviderChoice(provider, required=True))


@pytest.mark.usefixtures("cuda_without_a_gpu")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cuda_that_was_not_asked_for_leaves_its_place_to_the_cpu():
    built = staged_bundle()
    chosen = ONNXRuntimeEngine().open(built.bundle, SessionOptions(threads=1))
    request = built.request((13, 9, 4))
    assert np.array_equal(chosen.prefill(request).logits, built.open().prefill(request).logits)


@pytest.mark.usefixtures("cuda_without_a_gpu")
def test_a_provider_that_raises_is_refused_with_its_reason_and_prints_nothing(monkeypatch, capsys):
    real = onnxruntime.InferenceSession

    def failing(path, options, providers, **rest):
        if providers != ["CPUExecutionProvider"]:
            assert rest == {"enable_fallback": 0}
            raise RuntimeError("CUDA failure 35: driver too old\nmore lines")
        return real(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", failing)
    path = staged_bundle().bundle.path("decode")
    with pytest.raises(UserError, match=r"could not start it \(CUDA failure 35: driver too old\): check the GPU"):
        open_session(path, onnxruntime.SessionOptions, ProviderChoice("cuda", required=True))
    assert open_session(path, onnxruntime.SessionOptions, ProviderChoice("cuda", required=False))[1] == "cpu"
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("cuda_without_a_gpu")
@pytest.mark.parametrize(
    ("taken", "refused"), [(["CPUExecutionProvider"], True), (["CUDAExecutionProvider", "CPUExecutionProvider"], False)]
)
def test_a_provider_that_runs_no_part_of_the_graph_is_no_start(monkeypatch, taken, refused):
    class Session:
        def __init__(self, *arguments, **rest):
            pass

        def get_providers(self):
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def get_provider_graph_assignment_info(self):
            return [SimpleNamespace(ep_name=name) for name in taken]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    target = ProviderChoice("cuda", required=True)
    if refused:
        with pytest.raises(UserError, match="can run no part of the graph"):
            open_session("graph.onnx", onnxruntime.SessionOptions, target)
    else:
        assert open_session("graph.onnx", onnxruntime.SessionOptions, target)[1] == "cuda"


def test_nvidias_plugin_is_registered_once_and_given_its_options(monkeypatch, listed):
    listed(["CPUExecutionProvider"], plugin=True)
    registered, added = [], []
    plugin = SimpleNamespace(get_ep_name=lambda: "NvTensorRTRTXExecutionProvider", get_library_path=lambda: "x.so")
    monkeypatch.setitem(sys.modules, RTX_PACKAGE, plugin)
    monkeypatch.setattr(
        onnxruntime, "register_execution_provider_library", lambda name, path: registered.append((name, path))
    )
    gpu, other = SimpleNamespace(ep_name="NvTensorRTRTXExecutionProvider"), SimpleNamespace(ep_name="CPU")
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: [other, gpu])

    class Options:
        def add_session_config_entry(self, *entry):
            pass

        def add_provider_for_devices(self, devices, options):
            added.append((devices, options))

    class Session:
        def __init__(self, path, options):
            pass

        def get_providers(self):
            return ["NvTensorRTRTXExecutionProvider", "CPUExecutionProvider"]

        def get_provider_graph_assignment_info(self):
            return [gpu]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    session_module._register_plugin.cache_clear()
    for _ in range(2):
        _, used = open_session(
            "graph.onnx", Options, ProviderChoice("tensorrt-rtx", True, {"nv_runtime_cache_path": "p"})
        )
        assert used == "tensorrt-rtx"
    session_module._register_plugin.cache_clear()
    assert registered == [("NvTensorRTRTXExecutionProvider", "x.so")]
    assert added == [([gpu], {"nv_runtime_cache_path": "p"})] * 2


def test_nvidias_real_plugin_without_a_gpu_is_refused_in_one_line():
    pytest.importorskip(RTX_PACKAGE)
    if any(device.ep_name == PROVIDERS["tensorrt-rtx"] for device in onnxruntime.get_ep_devices()):
        pytest.skip("there is an RTX GPU")
    path = staged_bundle().bundle.path("decode")
    with pytest.raises(UserError, match=r"'tensorrt-rtx' was requested, .* RTX 30 series or newer") as caught:
        open_session(path, onnxruntime.SessionOptions, ProviderChoice("tensorrt-rtx", required=True))
    assert "\n" not in str(caught.value)


GRAPHS = ("vision", "prefill", "decode", "prefill_unpruned")


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    """A bundle whose cache may be written; its files are those of the shared one."""
    source = staged_bundle().bundle
    (tmp_path / "bundle").mkdir()
    for file in source.dir.iterdir():
        (tmp_path / "bundle" / file.name).symlink_to(file)
    return Bundle(tmp_path / "bundle", source.manifest)


def ranges(settings: dict[str, str], prefix: str) -> dict[str, dict[str, list[int]]]:
    """From the options' text: min, opt and max numbers by input."""
    parsed: dict[str, dict[str, list[int]]] = {}
    for kind in ("min", "opt", "max"):
        for part in settings[f"{prefix}_profile_{kind}_shapes"].split(","):
            name, _, sizes = part.partition(":")
            parsed.setdefault(name, {})[kind] = [int(size) for size in sizes.split("x")]
    return parsed


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_for_cpu_and_cuda_nothing_follows_from_the_bundle(bundle, provider):
    assert provider_settings(bundle, provider, "prefill") == {}
    assert not cache_dir(bundle).exists()


@pytest.mark.parametrize(("provider", "prefix"), [("tensorrt", "trt"), ("tensorrt-rtx", "nv")])
@pytest.mark.parametrize("role", GRAPHS)
def test_every_dynamic_input_has_a_range(bundle, provider, prefix, role):
    found = ranges(provider_settings(bundle, provider, role), prefix)
    graph = onnx.load(str(bundle.path(role)), load_external_data=False).graph
    dynamic = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in graph.input
        if any(size.dim_param for size in value.type.tensor_type.shape.dim)
    }
    counts = {"keep_counts"} if role == "prefill" else set()
    assert set(found) == set(dynamic) | counts
    for name, sizes in dynamic.items():
        low, opt, high = (found[name][kind] for kind in ("min", "opt", "max"))
        assert all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True))
        fixed = [(size, one) for size, one in zip(sizes, high, strict=True) if size]
        assert all(size == one for size, one in fixed)
    if counts:
        assert found["keep_counts"]["max"] == [25, 25, 25]


def test_decode_covers_all_that_a_prefill_of_any_budget_leaves(bundle):
    found = ranges(provider_settings(bundle, "tensorrt", "decode"), "trt")
    smallest = staged_bundle().bundle.keep_counts(6)
    for layer, kept in enumerate(smallest):
        assert found[f"key_{layer}"]["min"][2] <= kept + 1 and found[f"value_{layer}"]["max"][2] >= 25 + 128
        assert found[f"mask_{layer}"]["max"][1] == found[f"key_{layer}"]["max"][2] + 1


def test_fixed_counts_are_no_input():
    settings = provider_settings(grouped_bundle().bundle, "tensorrt", "prefill")
    assert "keep_counts" not in settings["trt_profile_max_shapes"]


def test_engines_of_each_graph_build_and_release_lie_apart_beside_the_bundle(bundle):
    place = Path(provider_settings(bundle, "tensorrt", "decode")["trt_engine_cache_path"])
    assert place.is_dir() and place.is_relative_to(bundle.dir.with_name("bundle-cache"))
    assert onnxruntime.__version__ in str(place)
    rebuilt = Bundle(bundle.dir, replace(bundle.manifest, input_digest="f" * 64))
    places = {
        provider_settings(*of)["trt_engine_cache_path"]
        for of in ((bundle, "tensorrt", "decode"), (bundle, "tensorrt", "prefill"), (rebuilt, "tensorrt", "decode"))
    }
    assert len(places) == 3


@pytest.mark.parametrize(
    ("precision", "enabled"), [("fp32", None), ("fp16", "trt_fp16_enable"), ("bf16", "trt_bf16_enable")]
)
def test_tensorrt_computes_in_the_precision_of_the_bundle(bundle, precision, enabled):
    engine = replace(bundle.manifest.engine, precision=precision)
    typed = Bundle(bundle.dir, replace(bundle.manifest, engine=engine))
    settings = provider_settings(typed, "tensorrt", "prefill")
    switched = [name for name in settings if name in ("trt_fp16_enable", "trt_bf16_enable")]
    assert switched == ([enabled] if enabled else [])


def test_a_place_that_cannot_be_written_is_one_line(bundle):
    cache_dir(bundle).write_text("in the way")
    message = r"bundle-cache.* cannot be created .*: make the directory of the bundle writable"
    with pytest.raises(UserError, match=message):
        provider_settings(bundle, "tensorrt", "decode")
