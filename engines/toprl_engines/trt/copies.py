"""TensorRT's copy of every graph."""

from __future__ import annotations

from pathlib import Path

import onnx

from toprl_engines.trt.passes.decomposable_attention import DECOMPOSABLE_ATTENTION
from toprl_engines.trt.passes.drop_functions import DROP_FUNCTIONS
from toprl_engines.trt.passes.graph_pass import GraphPass, run_passes
from toprl_engines.trt.passes.native_attention import native_attention
from toprl_engines.trt.passes.top_k_limit import check_top_k

PLUGIN_HEAD_DIMS = (64, 128)
"""Widths of a head that the plugin has kernels for."""
SUFFIX = ".tensorrt.onnx"


def write_copy(graph: Path, attention: str) -> Path:
    """Write TensorRT's copy beside the canonical ``graph``, whose file of weights it shares.

    Args:
        graph: NAME.onnx.
        attention: "plugin" or "native". The plugin is left out where a head's width is not one of its own, as in some
            vision towers.

    Returns:
        NAME.tensorrt.onnx.

    Raises:
        GraphError: the graph is not what the exporter writes.
        UserError: a top-k layer would exceed TensorRT's limit.
    """
    model = onnx.load(graph, load_external_data=False)
    check_top_k(model)
    run_passes(model, passes_for(attention))
    copy = graph.with_name(graph.stem + SUFFIX)
    copy.write_bytes(model.SerializeToString())
    return copy


def passes_for(attention: str) -> list[GraphPass]:
    """What makes TensorRT's copy of a canonical graph, in order."""
    rewrite = native_attention(lacks_plugin) if attention == "plugin" else native_attention()
    return [rewrite, DECOMPOSABLE_ATTENTION, DROP_FUNCTIONS]


def lacks_plugin(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether the plugin has no kernel for an attention node."""
    return head_dim(model, node) not in PLUGIN_HEAD_DIMS


def head_dim(model: onnx.ModelProto, node: onnx.NodeProto) -> int | None:
    """The width of a head of an attention node; None where the graph does not say it."""
    values = (*model.graph.value_info, *model.graph.input)
    query = next((value for value in values if value.name == node.input[0]), None)
    return None if query is None else query.type.tensor_type.shape.dim[-1].dim_value
