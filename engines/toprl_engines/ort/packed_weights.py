"""One weight file for several graphs that ONNX Runtime saved with packed weights, in which equal bytes exist once.

ONNX Runtime saves an optimised graph with a weight file of its own, which holds each matrix as the model has it and as
the CPU's kernels want it. Graphs of one bundle multiply by the same matrices, so the files are joined, and the graphs
are rewritten to refer to the joint one. This reads and writes the few protobuf messages that stand between a model and
its tensors' files itself, because what serves a bundle has no library for ONNX.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from toprl_engines.graph.external import base_128

_PARTS = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {6: "graph", 11: "graph"},
    "tensor": {},
    "entry": {},
}
"""Of each kind of message, the kinds of its fields that lead to tensors."""
_EXTERNAL_DATA = 13
"""The field of a tensor that holds its file's name and its places there, as entries of a key (1) and a value (2)."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PACKED = re.compile(r"([^|;]+)((?:\|\d+;\d+;[^|;]*)+)")
"""What ONNX Runtime says of a packed matrix: a kernel and a hash, then offset, length and checksum of each part."""
_ALIGNMENT = 4096
_CHUNK = 8 << 20
_FIRST = 64 << 10
"""Bytes by which candidates for equality are found; they are then compared whole."""


class JointWeights:
    """The file, while it is written: a context manager.

    Args:
        path: of the new file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end = 0
        self._known: dict[tuple[int, bytes], list[int]] = {}

    def __enter__(self) -> Self:
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                os.fsync(self._file)
        finally:
            os.close(self._file)

    def take(self, graph: Path) -> bytes:
        """The model in ``graph``, referring to this file, which takes up what it does not hold yet.

        Raises:
            ValueError: the graph, or what it says about its weights, is not in the form that ONNX Runtime 1.31 writes.
        """
        return _rewritten(graph.read_bytes(), "model", lambda entries: self._moved(entries, graph.parent))

    def _moved(self, entries: Mapping[str, str], directory: Path) -> dict[str, str]:
        moved = {"location": self.path.name}
        source = os.open(directory / entries["location"], os.O_RDONLY)
        try:
            moved["offset"] = str(self._copied(source, int(entries["offset"]), int(entries["length"])))
            moved["length"] = entries["length"]
            for key in entries.keys() - {"location", "offset", "length"}:
                found = _PACKED.fullmatch(entries[key])
                if not key.startswith("prepacked") or found is None:
                    raise ValueError(f"a tensor's place is described by {key!r}: {entries[key]!r}")
                parts = [part.split(";") for part in found[2].removeprefix("|").split("|")]
                places = [(self._copied(source, int(at), int(size)), size, checksum) for at, size, checksum in parts]
                moved[key] = "|".join([found[1], *(f"{at};{size};{checksum}" for at, size, checksum in places)])
        finally:
            os.close(source)
        return moved

    def _copied(self, source: int, offset: int, length: int) -> int:
        """Where the ``length`` bytes at ``offset`` of ``source`` are in this file."""
        first = hashlib.sha256(os.pread(source, min(length, _FIRST), offset)).digest()
        candidates = self._known.setdefault((length, first), [])
        for place in candidates:
            pairs = zip(_chunks(source, offset, length), _chunks(self._file, place, length), strict=True)
            if all(one == other for one, other in pairs):
                return place
        place = self._end = -(-self._end // _ALIGNMENT) * _ALIGNMENT
        for chunk in _chunks(source, offset, length):
            if os.pwrite(self._file, chunk, self._end) != len(chunk):
                raise OSError("the disk took only part of the weights")
            self._end += len(chunk)
        candidates.append(place)
        return place


def _chunks(file: int, offset: int, length: int) -> Iterator[bytes]:
    """``length`` bytes from ``offset`` on.

    Raises:
        ValueError: the file ends before.
    """
    for begin in range(offset, offset + length, _CHUNK):
        chunk = os.pread(file, min(_CHUNK, offset + length - begin), begin)
        if len(chunk) != min(_CHUNK, offset + length - begin):
            raise ValueError("a weight file is shorter than its graph says")
        yield chunk


def _rewritten(message: bytes, kind: str, moved: Callable[[Mapping[str, str]], Mapping[str, str]]) -> bytes:
    """A message in which ``moved`` has changed the external data of every tensor."""
    parts: list[bytes] = []
    entries: dict[str, str] = {}
    for number, whole, content in _fields(message):
        inner = _PARTS[kind].get(number)
        if kind == "tensor" and number == _EXTERNAL_DATA:
            pair = {field: value.decode() for field, _, value in _fields(content)}
            entries[pair[1]] = pair[2]
        elif inner is not None:
            parts.append(_field(number, _rewritten(content, inner, moved)))
        else:
            parts.append(whole)
    if entries:
        for key, value in moved(entries).items():
            entry = _field(1, key.encode()) + _field(2, value.encode())
            parts.append(_field(_EXTERNAL_DATA, entry))
    return b"".join(parts)


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, all bytes and content of every field; only fields of bytes have content."""
    at = 0
    while at < len(message):
        tag, begin = _read_number(message, at)
        wire = tag & 7
        if wire == _BYTES:
            length, begin = _read_number(message, begin)
            end = begin + length
        elif wire == _VARINT:
            end = _read_number(message, begin)[1]
        elif wire in (_FIXED64, _FIXED32):
            end = begin + (8 if wire == _FIXED64 else 4)
        else:
            raise ValueError(f"a field has the wire type {wire}")
        if end > len(message):
            raise ValueError("a message is cut off")
        yield tag >> 3, message[at:end], message[begin:end] if wire == _BYTES else b""
        at = end


def _read_number(message: bytes, at: int) -> tuple[int, int]:
    """The base-128 number at ``at``, and where it ends."""
    value = shift = 0
    while at < len(message):
        value |= (message[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if message[at - 1] < 0x80:
            return value, at
    raise ValueError("a message is cut off")


def _field(number: int, content: bytes) -> bytes:
    return base_128(number << 3 | _BYTES) + base_128(len(content)) + content
