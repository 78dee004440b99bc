"""`toprl::FlashAttention` as tracing meets it: the torch operator, and the ONNX function that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Union

import onnx
import torch
from onnx.defs import OpSchema
from onnxscript import BFLOAT16, FLOAT, FLOAT16, script
from onnxscript.onnx_opset import opset23 as op
from onnxscript.values import Op, Opset
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from toprl_engines.attention.op import DOMAIN, OPERATOR, VERSION

IMPLEMENTATION = "toprl_flash_attention"
"""The name under which transformers knows the op."""


@torch.library.custom_op("toprl::FlashAttention", mutates_args=())
def flash_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale · q kᵀ) v over the keys that ``mask`` allows.

    Args:
        query: ``[b, heads, q, head_dim]``.
        key: ``[b, kv_heads, k, head_dim]``; ``kv_heads`` divides ``heads`` and is never repeated in memory.
        value: like ``key``.
        mask: ``bool``, true where a query may attend, broadcastable to ``[b, heads, q, k]``; None: everywhere.
        scale: factor of the products.

    Returns:
        ``[b, heads, q, head_dim]``.
    """
    attended = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
    return attended.contiguous()


@flash_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    del key, mask, scale
    return torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device=query.device)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The form that transformers calls: the result is ``[b, q, heads, head_dim]``."""
    del module
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return flash_attention(query, key, value, attention_mask, scale).transpose(1, 2), None


@contextmanager
def routed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within the block every attention layer of ``model`` calls the op; afterwards its own implementations are back.

    The layers must be given a boolean mask, or none.
    """
    configs = {id(module.config): module.config for module in model.modules() if isinstance(module, PreTrainedModel)}
    former = [(config, config._attn_implementation) for config in configs.values()]
    AttentionInterface.register(IMPLEMENTATION, _attend)
    try:
        for config, _ in former:
            config._attn_implementation = IMPLEMENTATION
        yield
    finally:
        for config, implementation in former:
            config._attn_implementation = implementation


_TOPRL = Opset(DOMAIN, VERSION)
_Floats = Union[BFLOAT16, FLOAT, FLOAT16]  # noqa: UP007 (onnxscript knows no other form)


@script(_TOPRL, default_opset=op)
def FlashAttention(query, key, value, mask, scale: float) -> _Floats:  # type: ignore[no-untyped-def]  # noqa: ANN001
    return op.Attention(query, key, value, mask, scale=scale)  # type: ignore[return-value]


def function_proto() -> onnx.FunctionProto:
    """The function to put beside a graph that holds the op's nodes."""
    return FlashAttention.to_function_proto()


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What `torch.onnx.export` needs to write the torch operator as a node of the op.

    The node is written without its function: the exporter traces at opset 18 and inlines every function before it
    converts to a later opset, so the function can only be added to the finished model.
    """
    node = Op(_TOPRL, OPERATOR, _schema())

    def translate(query: Any, key: Any, value: Any, mask: Any, scale: float) -> Any:
        return node(query, key, value, mask, scale=scale)

    return {torch.ops.toprl.FlashAttention.default: translate}


def _schema() -> OpSchema:
    parameter = OpSchema.FormalParameter
    optional = OpSchema.FormalParameterOption.Optional
    return OpSchema(
        OPERATOR,
        DOMAIN,
        VERSION,
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
