"""Which TensorRT is used: the full one or TensorRT for RTX. Everything else takes the binding from here."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from packaging.version import Version

from toprl_engines.trt.library_alias import load_alias
from toprl_export.errors import MissingExtraError, UserError
from toprl_export.registry import unknown_name

BINDINGS = {"tensorrt": "trt", "tensorrt_rtx": "trt-rtx"}
"""Python packages with one API, the preferred one first, and the extra of toprl-export that brings each."""
OLDEST = {"tensorrt": Version("11.0"), "tensorrt_rtx": Version("1.7")}
"""The first versions with all that the builder asks for."""


@dataclass(frozen=True)
class Binding:
    """An imported TensorRT.

    Attributes:
        name: "tensorrt" or "tensorrt_rtx".
        module: the imported package; both offer the same names.
        version: of the package, such as "11.0.0.14".
    """

    name: str
    module: Any
    version: str

    @property
    def rtx(self) -> bool:
        """Whether this is TensorRT for RTX, whose builder needs no GPU."""
        return self.name == "tensorrt_rtx"


def distribution_of(binding: Binding) -> tuple[str, ...]:
    """The installed distribution that the binding's package came by, as ``importlib.metadata`` knows it; none where it
    came by an archive."""
    return tuple(sorted(set(metadata.packages_distributions().get(binding.name, ())))[:1])


def installed_bindings() -> tuple[str, ...]:
    """Names of the bindings that are installed, the preferred one first; nothing is imported."""
    return tuple(name for name in BINDINGS if importlib.util.find_spec(name) is not None)


def load_binding(name: str | None = None) -> Binding:
    """Import TensorRT, and mend what would abort its parser.

    Args:
        name: "tensorrt", "tensorrt_rtx", or None for the full one where it is installed and else the other.

    Raises:
        MissingExtraError: it is not installed.
        UserError: the name is unknown, the package is too old, or its libraries cannot be loaded.
    """
    if name is not None and name not in BINDINGS:
        raise unknown_name("TensorRT binding", name, tuple(BINDINGS))
    installed = installed_bindings()
    chosen = name or (installed[0] if installed else "tensorrt")
    if chosen not in installed:
        raise MissingExtraError(chosen, BINDINGS[chosen])
    try:
        module = importlib.import_module(chosen)
    except (ImportError, OSError) as error:
        raise UserError(
            f"{chosen} is installed but cannot be loaded ({error}): put the directory of its libraries on the "
            "loader's path, or choose another by --tensorrt-binding"
        ) from error
    version: str = module.__version__
    if Version(version) < OLDEST[chosen]:
        raise UserError(f"{chosen} {version} is too old, expected {OLDEST[chosen]} or newer: update it")
    if chosen == "tensorrt_rtx" and sys.platform == "linux":
        # Its parser opens the library by a name that the wheel does not ship, and aborts the process where that fails.
        library = "libtensorrt_rtx.so"
        try:
            load_alias(library, of=f"{library}.{Version(version).major}")
        except OSError as error:
            raise UserError(
                f"{chosen} {version} cannot be used safely, for its parser looks for {library} ({error}): put a link of"
                " that name to its library into a directory on LD_LIBRARY_PATH"
            ) from error
    return Binding(chosen, module, version)
