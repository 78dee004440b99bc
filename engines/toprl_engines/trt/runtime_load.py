"""Loading a bundle's engines: by the TensorRT and on the GPU that they were built for, with plugin and memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toprl_engines.trt.binding import Binding
from toprl_engines.trt.compatibility import check_compatible
from toprl_engines.trt.cuda import out_of_memory
from toprl_engines.trt.runtime_device import Device
from toprl_engines.trt.runtime_engine import LoadedEngine
from toprl_export.bundle import Bundle
from toprl_export.errors import UserError

PLUGIN = ("FlashAttention", "1", "toprl")
"""Name, version and namespace by which TensorRT knows the plugin."""
PLUGIN_ROLE = "plugin"
"""Of the bundle's shared library with `toprl::FlashAttention`."""


def open_engines(bundle: Bundle, roles: Sequence[str], binding: Binding, device: Device) -> list[LoadedEngine]:
    """Load the engines of these roles, in their order.

    Raises:
        UserError: they were built for another GPU or TensorRT, their plugin cannot be loaded, TensorRT does not take
            them, or the device has too little memory.
    """
    entry = bundle.manifest.engine
    check_compatible(entry, binding, device)
    logger = _make_logger(binding.module)
    if entry.attention == "plugin":
        _load_plugin(bundle, binding, logger)
    paths = [bundle.path(role) for role in roles]
    # A plan holds its weights, so that much is needed at least.
    size = sum(path.stat().st_size for path in paths)
    if size > device.free_bytes():
        raise out_of_memory("the engines' weights", size, device.free_bytes(), device.name)
    runtime = binding.module.Runtime(logger)
    # A plan for later versions brings the part of TensorRT that runs it; the bundle's digests vouch for it.
    runtime.engine_host_code_allowed = entry.version_compatible
    return [LoadedEngine(binding, runtime, logger, path) for path in paths]


def _make_logger(trt: Any) -> Any:
    """A TensorRT logger that keeps what is said of errors, in ``errors``, and prints nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base is known only at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.ERROR):
                self.errors.append(message.strip())

    return Logger()


def _load_plugin(bundle: Bundle, binding: Binding, logger: Any) -> None:
    """Make `toprl::FlashAttention` known to TensorRT, once a process."""
    library = _plugin_path(bundle)
    registry = binding.module.get_plugin_registry()
    if registry.get_creator(*PLUGIN) is not None:
        return
    if registry.load_library(str(library)) is None:
        reason = logger.errors[-1] if logger.errors else "it gave no reason"
        raise UserError(
            f"TensorRT cannot load the plugin {library}: {reason}; build it again on this machine with "
            "engines/flash_attention/build.sh, or build the bundle with --attention native"
        )


def _plugin_path(bundle: Bundle) -> Path:
    listed = [file.path for file in bundle.manifest.files if file.role == PLUGIN_ROLE]
    if len(listed) != 1:
        raise UserError(
            f"{bundle.dir} was built with the FlashAttention plugin, but lists no library of it: build it again, or "
            "with --attention native"
        )
    return bundle.dir / listed[0]
