"""TensorRT's copy of a canonical graph, and the passes that make it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx

from toprl_engines.graph.signature import GraphError
from toprl_engines.trt.passes.top_k_limit import check_top_k

DOMAIN, OPERATOR = "toprl", "FlashAttention"
"""The one attention operator of canonical graphs."""


@dataclass(frozen=True)
class GraphPass:
    """One rewrite of a model, in place.

    Attributes:
        name: for messages.
        requires: what must hold before; returns what is wrong, or None.
        apply: the rewrite.
        ensures: what holds afterwards; returns what is wrong, or None.
    """

    name: str
    requires: Callable[[onnx.ModelProto], str | None]
    apply: Callable[[onnx.ModelProto], None]
    ensures: Callable[[onnx.ModelProto], str | None]


def run_passes(model: onnx.ModelProto, passes: Iterable[GraphPass]) -> None:
    """Run ``passes`` in order, in place.

    Raises:
        GraphError: a pass met a graph that it is not for, or did not do what it promises.
    """
    for one in passes:
        _demand(one.requires(model), f"{one.name} needs another graph")
        one.apply(model)
        _demand(one.ensures(model), f"{one.name} failed")


def attention_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes of `toprl::FlashAttention`."""
    return [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, OPERATOR)]


def _demand(wrong: str | None, what: str) -> None:
    if wrong is not None:
        raise GraphError(f"pass {what}: {wrong}")


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


def _requires(model: onnx.ModelProto) -> str | None:
    names = sorted(function.name for function in model.functions)
    return None if names == [OPERATOR] else f"its functions are {names}"


def _apply(model: onnx.ModelProto) -> None:
    del model.functions[:]


def _ensures(model: onnx.ModelProto) -> str | None:
    return "functions are left" if model.functions else None


DROP_FUNCTIONS = GraphPass("drop-functions", _requires, _apply, _ensures)


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
