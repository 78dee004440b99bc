"""Which files a graph's weights lie in, read without a library for ONNX: what serves a bundle has none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from toprl_export.bundle import Bundle
from toprl_export.errors import UserError

_LOCATION = re.compile(rb"\x0a\x08location\x12")
"""How an entry of ``TensorProto.external_data`` begins: field 1, the key "location", then field 2, the file's name."""


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
    """The names of the files that a graph's tensors lie in, as the graph spells them."""
    content = graph.read_bytes()
    return set(_names(content))


def _names(content: bytes) -> Iterator[str]:
    for found in _LOCATION.finditer(content):
        length, start, shift = 0, found.end(), 0
        while start < len(content):  # a base-128 number, the last byte being below 128
            byte = content[start]
            length |= (byte & 0x7F) << shift
            start, shift = start + 1, shift + 7
            if byte < 0x80:
                break
        yield content[start : start + length].decode(errors="backslashreplace")
