"""Write `toprl::FlashAttention` as the ONNX operator `Attention`, which TensorRT reads as its own attention layer.

Both scale q kᵀ by ``scale`` and take a boolean mask that is true where a query may attend, so inputs and attributes
stay. `Attention` could also mark causality, but TensorRT takes no mask beside that, and the mask already says it.

Requires: opset 23. Ensures: no node of the operator is left that should not be.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from toprl_engines.trt.passes.graph_pass import GraphPass, attention_nodes

Chosen = Callable[[onnx.ModelProto, onnx.NodeProto], bool]


def native_attention(chosen: Chosen = lambda model, node: True) -> GraphPass:
    """The pass for the nodes that ``chosen`` picks; the others are left to the plugin."""

    def apply(model: onnx.ModelProto) -> None:
        for node in attention_nodes(model):
            if chosen(model, node):
                node.domain, node.op_type = "", "Attention"

    def ensures(model: onnx.ModelProto) -> str | None:
        left = [node.name for node in attention_nodes(model) if chosen(model, node)]
        return f"{left} are not rewritten" if left else None

    return GraphPass("native-attention", _requires, apply, ensures)


def _requires(model: onnx.ModelProto) -> str | None:
    versions = {opset.domain: opset.version for opset in model.opset_import}
    return None if versions.get("") == 23 else f"its opset is {versions.get('')}, expected 23"
