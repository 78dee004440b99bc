"""The weights of exported graphs: cast to a precision, and kept in one file for all graphs of a bundle."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from toprl_export.models.adapter import LVLMAdapter

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""From precisions to the types of weights and caches, by the names that torch and NumPy share."""
_KEPT_BUFFERS = ("inv_freq", "original_inv_freq")
"""Rotary frequencies stay in float32: rounded ones turn distant tokens by a visibly wrong angle."""


def in_precision(adapter: LVLMAdapter, precision: str) -> LVLMAdapter:
    """``adapter`` itself where its weights have the type, else a copy whose weights do; the original is left alone.

    Weights are cast one by one, so that beside the original only the cast ones take memory.

    Args:
        adapter: the reference model.
        precision: fp32, fp16 or bf16.
    """
    dtype: torch.dtype = getattr(torch, DTYPES[precision])
    if adapter.dtype == dtype:
        return adapter
    # A deep copy that finds a tensor in its memo takes that one in the place of a copy.
    memo: dict[int, Any] = {}
    for parameter in adapter.model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
    for name, buffer in adapter.model.named_buffers():
        kept = name.rpartition(".")[2] in _KEPT_BUFFERS or not buffer.is_floating_point()
        memo[id(buffer)] = buffer if kept else buffer.to(dtype)
    return type(adapter)(
        model_id=adapter.model_id,
        revision=adapter.revision,
        model=copy.deepcopy(adapter.model, memo),
        processor=adapter.frontend.processor,
    )


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
