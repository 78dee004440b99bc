"""Which TensorRT is used: the full one or TensorRT for RTX. Everything else takes the binding from here."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import platform
import struct
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.version import Version

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


_MACHINES = {"x86_64": 62, "aarch64": 183}
"""ELF numbers of the machines that TensorRT has libraries for."""
_PAGE = 0x10000
"""Bytes; a multiple of every page size of these machines."""
_LOAD, _DYNAMIC, _STACK = 1, 2, 0x6474E551
"""Kinds of program headers."""
_READ_WRITE = 6
_NEEDED, _STRINGS, _SYMBOLS, _STRINGS_SIZE, _SYMBOL_SIZE, _SONAME = 1, 5, 6, 10, 11, 14
"""Tags of the dynamic section."""
_HEADER, _PROGRAM_HEADER, _SYMBOL = 64, 56, 24
"""Bytes."""


def load_alias(alias: str, of: str) -> None:
    """Make every later ``dlopen(alias)`` of this process find the library that is loaded as ``of``.

    An empty library named ``alias`` that depends on ``of`` is loaded from a temporary file: the loader looks for
    loaded libraries of that name before it looks for files, and finds the symbols in what the library depends on.
    Once loaded it is there to stay, so a second call does no harm. On machines without TensorRT nothing happens.

    Raises:
        OSError: ``of`` cannot be found.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return
    with tempfile.TemporaryDirectory(prefix="toprl-export-") as directory:
        path = Path(directory, alias)
        path.write_bytes(alias_library(alias, of, machine))
        ctypes.CDLL(str(path))


def alias_library(alias: str, of: str, machine: int) -> bytes:
    """A 64-bit little-endian ELF library without symbols, named ``alias``, that depends on ``of``.

    Args:
        alias: its SONAME.
        of: the SONAME of the library that it depends on.
        machine: ELF's number of the machine.
    """
    strings = b"\0" + alias.encode() + b"\0" + of.encode() + b"\0"
    symbols_at = _HEADER + 3 * _PROGRAM_HEADER
    dynamic_at = symbols_at + _SYMBOL
    entries = {_SONAME: 1, _NEEDED: len(alias) + 2, _SYMBOLS: symbols_at, _SYMBOL_SIZE: _SYMBOL}
    dynamic_size = 16 * (len(entries) + 3)
    strings_at = dynamic_at + dynamic_size
    entries |= {_STRINGS: strings_at, _STRINGS_SIZE: len(strings), 0: 0}
    dynamic = b"".join(struct.pack("<QQ", tag, value) for tag, value in entries.items())
    size = strings_at + len(strings)
    programs = [
        _program_header(_LOAD, 0, size, _PAGE),
        _program_header(_DYNAMIC, dynamic_at, dynamic_size, 8),
        # Without this one the loader would ask for an executable stack.
        _program_header(_STACK, 0, 0, 16),
    ]
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01", 3, machine, 1, 0, _HEADER, 0, 0),
        *(_HEADER, _PROGRAM_HEADER, len(programs), 0, 0, 0),
    )
    return header + b"".join(programs) + b"\0" * _SYMBOL + dynamic + strings


def _program_header(kind: int, offset: int, size: int, alignment: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, _READ_WRITE, offset, offset, offset, size, size, alignment)
