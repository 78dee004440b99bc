"""Where ONNX Runtime runs: the names that users write, what is installed, and sessions that really run there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail, Fail, RuntimeException
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as Unsupported

from toprl_export.errors import UserError
from toprl_export.registry import unknown_name

CPU, CUDA, TENSORRT, TENSORRT_RTX = "cpu", "cuda", "tensorrt", "tensorrt-rtx"
PROVIDERS = {
    CPU: "CPUExecutionProvider",
    CUDA: "CUDAExecutionProvider",
    TENSORRT: "TensorrtExecutionProvider",
    TENSORRT_RTX: "NvTensorRTRTXExecutionProvider",
}
"""ONNX Runtime's names by ours."""

_ALWAYS = {CUDA: {"use_tf32": "0"}}
"""CUDA would round the factors of fp32 products to TF32. So do both TensorRTs, whose providers have no option against
it."""

RTX_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
"""NVIDIA's package that brings the provider for TensorRT for RTX as a plugin."""

_HOW = {
    CPU: "install the extra toprl-export[onnx]",
    CUDA: "it needs the extra toprl-export[gpu] in place of [onnx]",
    TENSORRT: "it needs the extra toprl-export[gpu] in place of [onnx], and the TensorRT that it was built for",
    TENSORRT_RTX: "it needs the package onnxruntime-ep-nv-tensorrt-rtx beside the extra toprl-export[onnx]",
}
_NEEDS = {
    CUDA: "check the GPU, its driver, CUDA and cuDNN (pip install 'onnxruntime-gpu[cuda,cudnn]' brings both)",
    TENSORRT: "check the GPU, its driver, CUDA, and that the TensorRT that ONNX Runtime was built for can be found",
    TENSORRT_RTX: "check that there is a GPU of the RTX 30 series or newer, and its driver",
}
_STARTING = (EPFail, Fail, Unsupported, RuntimeException, RuntimeError, ValueError, ImportError, OSError)
"""What a provider that cannot start raises."""


@dataclass(frozen=True)
class Target:
    """Where a session shall run.

    Attributes:
        provider: a key of ``PROVIDERS``.
        required: refuse where it cannot be started; or else the CPU takes its place.
        settings: ONNX Runtime's options for the provider.
    """

    provider: str
    required: bool
    settings: Mapping[str, str] = field(default_factory=dict)


def installed_providers() -> tuple[str, ...]:
    """Our names of what the installed ONNX Runtime was built with or has a plugin for, GPU or not."""
    offered = set(onnxruntime.get_available_providers())
    if find_spec(RTX_PACKAGE) is not None:
        offered.add(PROVIDERS[TENSORRT_RTX])
    return tuple(name for name, full in PROVIDERS.items() if full in offered)


def choose_provider(name: str | None) -> str:
    """The provider to try; None takes CUDA where it is installed, else the CPU.

    The two TensorRTs are taken only when they are asked for: they build engines first, which takes minutes.

    Raises:
        UserError: the name is unknown or not installed.
    """
    here = installed_providers()
    if name is None:
        return CUDA if CUDA in here else CPU
    if name not in PROVIDERS:
        raise unknown_name("provider", name, PROVIDERS)
    if name not in here:
        raise UserError(f"provider {name!r} is not available, this ONNX Runtime offers {', '.join(here)}: {_HOW[name]}")
    return name


def provider_chain(name: str, settings: Mapping[str, str] | None = None) -> list[tuple[str, dict[str, str]]]:
    """Providers with their options, each for what those before it cannot run: TensorRT's is backed by CUDA."""
    behind = [CUDA] if name in (TENSORRT, TENSORRT_RTX) and CUDA in installed_providers() else []
    chain = list(dict.fromkeys([name, *behind, CPU]))
    own = {name: settings or {}}
    return [(PROVIDERS[one], {**_ALWAYS.get(one, {}), **own.get(one, {})}) for one in chain]


def provider_used(session: onnxruntime.InferenceSession) -> str:
    """Our name of where ``session`` really runs, which is the CPU when no other could be started."""
    first = session.get_providers()[0]
    return next(short for short, full in PROVIDERS.items() if full == first)


def open_session(
    path: Path, options: Callable[[], onnxruntime.SessionOptions], target: Target
) -> tuple[onnxruntime.InferenceSession, str]:
    """A session of the graph at ``path``, and our name of where it runs.

    Args:
        path: an ONNX file.
        options: makes session options; each attempt gets its own.
        target: where it shall run.

    Raises:
        UserError: ``target`` is required and cannot be started, or takes nothing of the graph.
    """
    if target.provider != CPU:
        try:
            session = _start(path, options(), target)
            reason = _why_not(session, target.provider)
        except _STARTING as error:
            reason = str(error).strip().partition("\n")[0]
        if reason is None:
            return session, target.provider
        if target.required:
            raise UserError(
                f"provider {target.provider!r} was asked for, but ONNX Runtime could not start it ({reason}): "
                f"{_NEEDS[target.provider]}, or use the CPU"
            )
    return onnxruntime.InferenceSession(str(path), options(), providers=[PROVIDERS[CPU]]), CPU


def _start(path: Path, options: onnxruntime.SessionOptions, target: Target) -> onnxruntime.InferenceSession:
    # Or else a graph that went to the CPU whole would look as if the provider ran it.
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    full = PROVIDERS[target.provider]
    if full in onnxruntime.get_available_providers():
        chain = provider_chain(target.provider, target.settings)
        # Its own fallback prints to standard output, where a command's JSON goes.
        return onnxruntime.InferenceSession(str(path), options, providers=chain, enable_fallback=0)
    _register_plugin()
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == full]
    if not devices:
        raise RuntimeError("it finds no GPU that it supports")
    options.add_provider_for_devices(devices[:1], dict(target.settings))
    return onnxruntime.InferenceSession(str(path), options)


@cache
def _register_plugin() -> None:
    """Once a process, for ONNX Runtime keeps what is registered."""
    plugin: Any = import_module(RTX_PACKAGE)
    onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())


def _why_not(session: onnxruntime.InferenceSession, provider: str) -> str | None:
    """Why a session does not run by ``provider``, or None where it does."""
    used = provider_used(session)
    if used != provider:
        return f"it fell back to {used!r}"
    taken = {subgraph.ep_name for subgraph in session.get_provider_graph_assignment_info()}
    return None if PROVIDERS[provider] in taken else "it can run no part of the graph"
