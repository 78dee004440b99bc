"""`toprl::FlashAttention` in ONNX: a model-local function whose body is the opset-23 `Attention`.

ONNX Runtime inlines the function; a copy of the graph without it leaves the node to a plugin of that name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnx.defs import OpSchema
from onnxscript import script
from onnxscript.onnx_opset import opset23 as op
from onnxscript.values import Op, Opset

from toprl_engines.attention.op import flash_attention  # noqa: F401  registers the torch operator

DOMAIN = "toprl"
_TOPRL = Opset(DOMAIN, 1)


@script(_TOPRL, default_opset=op)
def FlashAttention(query, key, value, mask, scale: float):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    return op.Attention(query, key, value, mask, scale=scale)


def function_proto() -> onnx.FunctionProto:
    """The function to put beside a graph that holds the op's nodes."""
    return FlashAttention.to_function_proto()


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What `torch.onnx.export` needs to write the torch operator as a node of the op.

    The node is written without its function: the exporter traces at opset 18 and inlines every function before it
    converts to a later opset, so the function can only be added to the finished model.
    """
    node = Op(_TOPRL, "FlashAttention", _schema())

    def translate(query: Any, key: Any, value: Any, mask: Any, scale: float) -> Any:
        return node(query, key, value, mask, scale=scale)

    return {torch.ops.toprl.FlashAttention.default: translate}


def _schema() -> OpSchema:
    parameter = OpSchema.FormalParameter
    optional = OpSchema.FormalParameterOption.Optional
    return OpSchema(
        "FlashAttention",
        DOMAIN,
        1,
        inputs=[
            parameter("query", "T"),
            parameter("key", "T"),
            parameter("value", "T"),
            parameter("mask", "M", param_option=optional),
        ],
        outputs=[parameter("attended", "T")],
        type_constraints=[
            ("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "States."),
            ("M", ["tensor(bool)"], "Allowed pairs."),
        ],
        attributes=[OpSchema.Attribute("scale", OpSchema.AttrType.FLOAT, "Factor of q kᵀ.", required=True)],
    )
