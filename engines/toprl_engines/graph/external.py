"""Which files a graph's weights lie in, read without a library for ONNX: what serves a bundle has none."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from toprl_export.bundle import Bundle
from toprl_export.errors import UserError

_KEY = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")
"""The key of an entry of ``TensorProto.external_data`` (field 1), its tag and length in every spelling of a number."""
_VALUE_TAG = b"\x12"  # field 2, the file's name
_ENTRY_TAG = b"\x6a"  # field 13 of TensorProto


def check_external_data(bundle: Bundle) -> None:
    """Refuse graphs that take weights from files which the manifest does not vouch for.

    Raises:
        UserError: names the graph and the file.
    """
    listed = {file.path for file in bundle.manifest.files}
    for file in bundle.manifest.files:
        if not file.path.endswith(".onnx"):
            continue
        for name in external_files(bundle.dir / file.path):
            if (PurePosixPath(file.path).parent / name).as_posix() not in listed:
                raise UserError(
                    f"{bundle.dir / file.path} takes weights from {name!r}, which the manifest does not list: do not "
                    "use this bundle, build it again"
                )


def external_files(graph: Path) -> set[str]:
    """The names of the files that a graph's tensors lie in, as the graph spells them.

    Raises:
        UserError: an entry is not the key and then the one name, each in its shortest form: protobuf readers also take
            other orders, repetitions (the last counts) and longer numbers, in which another name could hide.
    """
    content = graph.read_bytes()
    return {_name(content, found.start(), graph) for found in _KEY.finditer(content)}


def _name(content: bytes, start: int, graph: Path) -> str:
    """The file's name of the entry whose key is at ``start``."""
    value = start + len(b"\x0a\x08location")
    length, shift = 0, 0
    for at in range(value + 1, min(value + 6, len(content))):  # a base-128 number, the last byte being below 128
        length, shift = length | (content[at] & 0x7F) << shift, shift + 7
        if content[at] < 0x80:
            name = content[at + 1 : at + 1 + length]
            key = b"\x0a\x08location" + _VALUE_TAG + base_128(length)
            whole = _ENTRY_TAG + base_128(len(key) + length) + key + name
            begin = start - (len(whole) - len(key) - length)
            if len(name) == length and begin >= 0 and content[begin : at + 1 + length] == whole:
                return name.decode(errors="backslashreplace")
            break
    raise UserError(
        f"{graph} does not spell out the files of its weights as this release writes them: do not use this bundle, "
        "build it again"
    )


def base_128(value: int) -> bytes:
    """A base-128 number in its shortest form."""
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
