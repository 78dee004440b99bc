"""ONNX Runtime's options for the providers that build engines of their own from a bundle's graphs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime

from toprl_engines.ort.providers import TENSORRT, TENSORRT_RTX
from toprl_export.bundle import Bundle
from toprl_export.errors import UserError

if TYPE_CHECKING:
    from toprl_engines.trt.build_report import InputRange


def provider_settings(bundle: Bundle, provider: str, role: str) -> dict[str, str]:
    """Options for one graph that follow from its bundle; none for the CPU and CUDA.

    Both TensorRTs keep the engines that they build, and are told the range of every size, or else each new size
    (that is each generated token) would make them build another engine.

    Args:
        bundle: verified.
        provider: one of `toprl_engines.ort.providers.PROVIDERS`.
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
    # ONNX Runtime does not notice other weights: engines of another build, or of another release, lie elsewhere.
    build = f"{bundle.manifest.input_digest[:16]}-{onnxruntime.__version__}"
    place = cache_dir(bundle) / provider / build / role
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{place} cannot be made for the engines that {provider!r} builds ({error.strerror}): make the directory "
            "of the bundle writable, or choose another provider"
        ) from error
    return place


def _profile(bundle: Bundle, role: str, prefix: str) -> dict[str, str]:
    """The ranges in the form of both TensorRT providers; an input of counts has its values in the place of sizes."""
    ranges = input_ranges(bundle, role)
    kinds = {
        "min": {one.name: one.least for one in ranges},
        "opt": {one.name: one.usual for one in ranges},
        "max": {one.name: one.most for one in ranges},
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
