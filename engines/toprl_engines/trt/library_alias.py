"""A second name for a shared library that is loaded already (Linux, ELF)."""

from __future__ import annotations

import ctypes
import platform
import struct
import tempfile
from pathlib import Path

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
