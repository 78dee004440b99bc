"""Making `toprl::FlashAttention` known to TensorRT in this process."""

from __future__ import annotations

from pathlib import Path

from toprl_engines.trt.binding import Binding
from toprl_engines.trt.log import make_log
from toprl_export.errors import UserError
from toprl_export.tensorrt_options import check_plugin_library

LIBRARY = "libtoprl_flash_attention_plugin.so"
"""Its file in a bundle."""
CREATOR = ("FlashAttention", "1", "toprl")
"""Name, version and namespace by which TensorRT knows the plugin."""


def register_plugin(binding: Binding, library: Path | None) -> None:
    """Load the plugin's shared library, or without one register its Python route. Once a process is enough.

    Raises:
        UserError: the library is missing or TensorRT cannot load it, or the Python route lacks what it needs.
    """
    registry = binding.module.get_plugin_registry()
    if registry.get_creator(*CREATOR) is not None:
        return
    if library is None:
        from toprl_engines.trt.python_plugin import register_python_plugin

        register_python_plugin(binding)
        return
    check_plugin_library(library)
    log = make_log(binding.module)
    try:
        handle = registry.load_library(str(library.resolve()))
    except (RuntimeError, OSError) as error:
        log.errors.append(str(error))
        handle = None
    if handle is None or registry.get_creator(*CREATOR) is None:
        reason = " ".join(log.errors[-1].split()) if log.errors else "it holds no plugin of that name"
        raise UserError(
            f"{binding.name} cannot load the plugin {library}: {reason}; build it again on this machine with "
            "engines/flash_attention/build.sh, or use --attention native"
        )
