"""What ONNX Runtime raises when it cannot start, load or compute; its exceptions have no base of their own."""

from __future__ import annotations

from onnxruntime.capi.onnxruntime_pybind11_state import (
    EPFail,
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NoModel,
    NoSuchFile,
    RuntimeException,
)
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as Unsupported

STARTING = (EPFail, Fail, Unsupported, RuntimeException, RuntimeError, ValueError, ImportError, OSError)
"""What a provider that cannot start raises."""
LOADING = (*STARTING, InvalidArgument, InvalidGraph, InvalidProtobuf, NoModel, NoSuchFile, MemoryError)
"""What a damaged graph or weight file raises."""
RUNNING = (Fail, InvalidArgument, RuntimeException, Unsupported)
"""What a request that a graph cannot compute raises."""


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
