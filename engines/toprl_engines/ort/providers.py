"""Where ONNX Runtime runs: the names that users write, what is installed, and the options of each provider.

ONNX Runtime is imported when it is needed, so that the command line can know the names without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from toprl_export.errors import UserError
from toprl_export.registry import unknown_name

if TYPE_CHECKING:
    from toprl_engines.trt.build_report import InputRange
    from toprl_export.bundle import Bundle

CPU, CUDA, TENSORRT, TENSORRT_RTX = "cpu", "cuda", "tensorrt", "tensorrt-rtx"
PROVIDERS = {
    CPU: "CPUExecutionProvider",
    CUDA: "CUDAExecutionProvider",
    TENSORRT: "TensorrtExecutionProvider",
    TENSORRT_RTX: "NvTensorRTRTXExecutionProvider",
}
"""ONNX Runtime's names by ours."""
_OURS = {full: name for name, full in PROVIDERS.items()}

IN_CACHE, IN_MEMORY, OFF = "cache", "memory", "off"
RUN_OPTIONS = {"packing": (IN_CACHE, IN_MEMORY, OFF)}
"""What a session can be told, and the values, of which the first is the default: where the CPU's weights are packed."""

_ALWAYS = {CUDA: {"use_tf32": "0"}}
"""CUDA would round the factors of fp32 products to TF32. So do both TensorRTs, whose providers have no option against
it."""

RTX_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
"""NVIDIA's package that brings the provider for TensorRT for RTX as a plugin."""

_TO_INSTALL = {
    CPU: "install the extra toprl-export[serve-onnx]",
    CUDA: "it needs the extra toprl-export[gpu] in place of [onnx] and [serve-onnx]",
    TENSORRT: "it needs the extra toprl-export[gpu] in place of [onnx] and [serve-onnx], and TensorRT",
    TENSORRT_RTX: "it needs the package onnxruntime-ep-nv-tensorrt-rtx beside toprl-export[onnx] or [serve-onnx]",
}
"""How to install what is missing."""
FIXES = {
    CUDA: "check the GPU, its driver, CUDA and cuDNN (pip install 'onnxruntime-gpu[cuda,cudnn]' brings both)",
    TENSORRT: "check the GPU, its driver, CUDA, and that the TensorRT that ONNX Runtime was built for can be found",
    TENSORRT_RTX: "check that there is a GPU of the RTX 30 series or newer, and its driver",
}
"""What to check where a provider is installed and cannot be started."""


def installed_providers() -> tuple[str, ...]:
    """Our names of what the installed ONNX Runtime was built with or has a plugin for, GPU or not."""
    import onnxruntime

    offered = set(onnxruntime.get_available_providers())
    if find_spec(RTX_PACKAGE) is not None:
        offered.add(PROVIDERS[TENSORRT_RTX])
    return tuple(name for name, full in PROVIDERS.items() if full in offered)


def choose_provider(name: str | None) -> str:
    """The provider to try; None takes CUDA where it is installed, else the CPU.

    The two TensorRTs are taken only by name: they build engines first, which takes minutes.

    Args:
        name: one of ours or of ONNX Runtime's own, such as ``CUDAExecutionProvider``.

    Raises:
        UserError: the name is unknown or not installed.
    """
    here = installed_providers()
    if name is None:
        return CUDA if CUDA in here else CPU
    name = _OURS.get(name, name)
    if name not in PROVIDERS:
        raise unknown_name("provider", name, PROVIDERS)
    if name not in here:
        raise UserError(
            f"provider {name!r} is not available, this ONNX Runtime offers {', '.join(here)}: {_TO_INSTALL[name]}"
        )
    return name


def provider_chain(name: str, settings: Mapping[str, str] | None = None) -> list[tuple[str, dict[str, str]]]:
    """Providers with their options, each for what those before it cannot run: TensorRT's is backed by CUDA."""
    behind = [CUDA] if name in (TENSORRT, TENSORRT_RTX) and CUDA in installed_providers() else []
    chain = list(dict.fromkeys([name, *behind, CPU]))
    own = {name: settings or {}}
    return [(PROVIDERS[one], {**_ALWAYS.get(one, {}), **own.get(one, {})}) for one in chain]


def provider_settings(bundle: Bundle, provider: str, role: str) -> dict[str, str]:
    """Options for one graph that follow from its bundle; none for the CPU and CUDA.

    Both TensorRTs keep the engines that they build, and get the range of every size, without which each new size
    (that is each generated token) would make them build another engine.

    Args:
        bundle: verified.
        provider: one of `PROVIDERS`.
        role: of the graph.

    Raises:
        UserError: the directory for the engines cannot be made.
    """
    if provider == TENSORRT:
        place = str(_engine_dir(bundle, provider, role))
        settings = {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": place,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": place,
        }
        precision = bundle.manifest.engine.precision
        typed = {} if precision == "fp32" else {f"trt_{precision}_enable": "1"}
        return settings | typed | _profile(bundle, role, "trt")
    if provider == TENSORRT_RTX:
        return {"nv_runtime_cache_path": str(_engine_dir(bundle, provider, role)), **_profile(bundle, role, "nv")}
    return {}


def cache_dir(bundle: Bundle) -> Path:
    """Where engines that ONNX Runtime builds from ``engines/T`` are kept: ``engines/T-cache``.

    Beside the bundle, for a bundle's files are those that its manifest vouches for.
    """
    resolved = bundle.dir.resolve()
    return resolved.with_name(f"{resolved.name}-cache")


def _engine_dir(bundle: Bundle, provider: str, role: str) -> Path:
    import onnxruntime

    # ONNX Runtime does not notice other weights: engines of another build, or of another release, lie elsewhere.
    build = f"{bundle.manifest.input_digest[:16]}-{onnxruntime.__version__}"
    place = cache_dir(bundle) / provider / build / role
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{place} cannot be created for the engines that {provider!r} builds ({error.strerror}): make the "
            "directory of the bundle writable, or choose another provider"
        ) from error
    return place


def _profile(bundle: Bundle, role: str, prefix: str) -> dict[str, str]:
    """The ranges in the form of both TensorRT providers; an input of counts has its values in the place of sizes."""
    ranges = input_ranges(bundle, role)
    kinds = {
        "min": {one.name: one.min for one in ranges},
        "opt": {one.name: one.opt for one in ranges},
        "max": {one.name: one.max for one in ranges},
    }
    return {
        f"{prefix}_profile_{kind}_shapes": ",".join(f"{name}:{'x'.join(map(str, sizes))}" for name, sizes in of.items())
        for kind, of in kinds.items()
    }


def input_ranges(bundle: Bundle, role: str) -> tuple[InputRange, ...]:
    """Ranges of a graph's inputs, the same that the engine ``trt`` builds for by default.

    Args:
        bundle: of the engine ``onnx``.
        role: of the graph.
    """
    import onnx

    from toprl_engines.graph.signature import GraphSpec, Layout, TensorSpec, sizes_of
    from toprl_engines.trt.build.profiles import ProfileLimits, graph_profiles

    graph = onnx.load(str(bundle.path(role)), load_external_data=False).graph
    spec = GraphSpec(tuple(TensorSpec(value.name, sizes_of(value)) for value in graph.input), ())
    model, plan = bundle.manifest.model, bundle.manifest.plan
    layout = Layout(
        shape=model.shape,
        visual_tokens=model.visual_tokens,
        groups=tuple(group for group, layers in enumerate(plan.groups) for _ in layers),
        first_stage_group=int(plan.stage_layers[0] > 0),
        stages=len(plan.stages),
    )
    return graph_profiles({role: spec}, layout, plan, ProfileLimits(), model.max_length)[role]
