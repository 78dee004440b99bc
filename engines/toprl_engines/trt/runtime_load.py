"""Loading a bundle's engines: by the TensorRT and on the GPU that they were built for, with plugin and memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toprl_engines.trt.binding import Binding
from toprl_engines.trt.compatibility import check_compatible
from toprl_engines.trt.cuda import out_of_memory
from toprl_engines.trt.interrupt import deferred_interrupt
from toprl_engines.trt.log import BuildLog, last_error, make_log
from toprl_engines.trt.plugin import register_plugin
from toprl_engines.trt.runtime_device import Device
from toprl_engines.trt.runtime_engine import LoadedEngine
from toprl_export.bundle import Bundle
from toprl_export.errors import UserError


def open_engines(bundle: Bundle, roles: Sequence[str], binding: Binding, device: Device) -> list[LoadedEngine]:
    """Load the engines of these roles, in their order.

    Raises:
        UserError: they were built for another GPU or TensorRT, their plugin cannot be loaded, TensorRT does not take
            them, or the device has too little memory.
        KeyboardInterrupt: Ctrl-C was pressed, which is minded between two engines.
    """
    entry = bundle.manifest.engine
    check_compatible(entry, binding, device)
    if entry.attention == "plugin":
        register_plugin(binding, _plugin_library(bundle))
    paths = [bundle.path(role) for role in roles]
    weights = [bundle.path("weights")] if entry.weight_stripped else []
    # A plan, or else the file of weights, is what the GPU must hold at least.
    size = sum(path.stat().st_size for path in [*paths, *weights])
    if size > device.free_bytes():
        raise out_of_memory("the engines' weights", size, device.free_bytes(), device.name)
    log = make_log(binding.module)
    runtime = _runtime(binding, log)
    # A plan for later versions brings the part of TensorRT that runs it; the bundle's digests vouch for it.
    runtime.engine_host_code_allowed = entry.version_compatible
    engines = []
    for role, path in zip(roles, paths, strict=True):
        graph = bundle.path(f"refit_{role}") if entry.weight_stripped else None
        with deferred_interrupt():  # raised while TensorRT writes to the log, it would be swallowed
            engines.append(LoadedEngine(binding, runtime, log, path, graph))
    return engines


def _plugin_library(bundle: Bundle) -> Path | None:
    """The library that the bundle brings; None where its plans were built by the plugin's Python route."""
    listed = [file.path for file in bundle.manifest.files if file.role == "plugin"]
    return bundle.dir / listed[0] if listed else None


def _runtime(binding: Binding, log: BuildLog) -> Any:
    try:
        return binding.module.Runtime(log)
    except TypeError as error:  # what a C++ factory's null pointer becomes
        raise UserError(
            f"{binding.name} {binding.version} cannot start: {last_error(log)}; check the GPU, and that its driver is "
            "new enough for this TensorRT"
        ) from error
