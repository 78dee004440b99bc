"""Leave `toprl::FlashAttention` to whoever knows it: its function body goes, the nodes stay.

TensorRT's parser prefers a function in the file to a plugin of the same name, so the plugin would never be asked.

Requires: the body is in the file. Ensures: no functions, and as many nodes as before.
"""

from __future__ import annotations

import onnx

from toprl_engines.trt.passes.graph_pass import OPERATOR, GraphPass


def _requires(model: onnx.ModelProto) -> str | None:
    names = sorted(function.name for function in model.functions)
    return None if names == [OPERATOR] else f"its functions are {names}"


def _apply(model: onnx.ModelProto) -> None:
    del model.functions[:]


def _ensures(model: onnx.ModelProto) -> str | None:
    return "functions are left" if model.functions else None


DROP_FUNCTIONS = GraphPass("drop-functions", _requires, _apply, _ensures)
