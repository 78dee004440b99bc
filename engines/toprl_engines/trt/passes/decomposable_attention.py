"""Let TensorRT compute an attention layer by several kernels where it has no fused one for it.

Without the mark such a layer fails the build: every one in fp32, and in fp16 and bf16 those of unusual shapes, such as
one query over two heads. Where there is a fused kernel it is used all the same. ONNX Runtime refuses the attribute,
which is one reason why TensorRT gets a copy of the graph.

Requires: nothing. Ensures: every `Attention` has the mark once.
"""

from __future__ import annotations

import onnx

from toprl_engines.trt.passes.graph_pass import GraphPass

MARK = "TRT_decomposable"


def _apply(model: onnx.ModelProto) -> None:
    for node in _attentions(model):
        if not _marks(node):
            node.attribute.append(onnx.helper.make_attribute(MARK, 1))


def _ensures(model: onnx.ModelProto) -> str | None:
    unmarked = [node.name for node in _attentions(model) if _marks(node) != [1]]
    return f"{unmarked} are not marked" if unmarked else None


def _attentions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if (node.domain, node.op_type) == ("", "Attention")]


def _marks(node: onnx.NodeProto) -> list[int]:
    return [attribute.i for attribute in node.attribute if attribute.name == MARK]


DECOMPOSABLE_ATTENTION = GraphPass("decomposable-attention", lambda model: None, _apply, _ensures)
