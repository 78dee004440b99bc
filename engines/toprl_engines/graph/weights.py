"""One file of weights for all graphs of a bundle: equal tensors are stored once and can be mapped into memory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType

import onnx_ir as ir

ALIGNMENT = 4096
"""Bytes; a page, so that a runtime can map each tensor instead of reading it."""

INLINE_BELOW = 1024
"""Bytes; smaller tensors (shapes, scalars, narrow norms) stay in the graph, where shape inference sees them."""


class WeightFile:
    """Collects the large tensors of several graphs into one file; use as a context manager.

    Attributes:
        path: the file; graphs must be saved beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets: dict[bytes, int] = {}

    def __enter__(self) -> WeightFile:
        self._stream = open(self.path, "xb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def take(self, model: ir.Model) -> None:
        """Move the large initializers of ``model`` into the file. In place."""
        for initializer in model.graph.initializers.values():
            tensor = initializer.const_value
            if tensor is None:
                raise ValueError(f"initializer {initializer.name} has no value")
            if tensor.nbytes >= INLINE_BELOW:
                initializer.const_value = ir.ExternalTensor(
                    self.path.name,
                    offset=self._offset_of(tensor.tobytes()),
                    length=tensor.nbytes,
                    dtype=tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=str(initializer.name),
                    base_dir=self.path.parent,
                )

    def _offset_of(self, content: bytes) -> int:
        digest = hashlib.sha256(content).digest()
        if digest not in self._offsets:
            self._stream.write(b"\0" * (-self._stream.tell() % ALIGNMENT))
            self._offsets[digest] = self._stream.tell()
            self._stream.write(content)
        return self._offsets[digest]
