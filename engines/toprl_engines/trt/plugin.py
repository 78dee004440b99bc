"""Making `toprl::FlashAttention` known to TensorRT in this process."""

from __future__ import annotations

import ctypes
from pathlib import Path

from toprl_engines.trt.binding import Binding
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
    reason = ""
    try:
        registry.load_library(str(library.resolve()))
    except (RuntimeError, OSError) as error:
        reason = str(error)
    if registry.get_creator(*CREATOR) is None:
        raise UserError(
            f"{binding.name} cannot load the plugin {library}: {reason or _what_is_wrong(library)}; build it again on "
            "this machine with engines/flash_attention/build.sh, or use --attention native"
        )


def _what_is_wrong(library: Path) -> str:
    """Why TensorRT did not take a library; it does not tell itself."""
    try:
        ctypes.CDLL(str(library.resolve()))
    except OSError as error:
        return str(error)
    return f"it holds no plugin {CREATOR[2]}::{CREATOR[0]}"
