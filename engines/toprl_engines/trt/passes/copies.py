"""TensorRT's copy of a canonical graph, and the passes that make it.

Attention is `toprl::FlashAttention` in every canonical graph. In the copy the plugin computes it, or TensorRT's own
attention layer where that was chosen or where the plugin has no kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx

from toprl_engines.attention.op import DOMAIN, OPERATOR
from toprl_engines.graph.export import OPSET
from toprl_engines.graph.passes import PassResult
from toprl_engines.graph.signature import GraphError
from toprl_engines.trt.passes.top_k_limit import check_top_k
from toprl_flash_attention.tiles import HEAD_DIMS

SUFFIX = ".tensorrt.onnx"
MARK = "TRT_decomposable"

Nodes = list[onnx.NodeProto]
Chosen = Callable[[onnx.ModelProto, onnx.NodeProto], bool]


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


@dataclass(frozen=True)
class GraphPass:
    """One rewrite of a model, in place.

    Attributes:
        name: for messages.
        requires: what must hold before; returns what is wrong, or None. Where a graph must have what the pass is for,
            its absence is wrong: the plan would be slower or fail to build, far from the cause.
        apply: the rewrite; returns what it changed.
        ensures: what holds afterwards; returns what is wrong, or None.
    """

    name: str
    requires: Callable[[onnx.ModelProto], str | None]
    apply: Callable[[onnx.ModelProto], PassResult]
    ensures: Callable[[onnx.ModelProto], str | None]


def run_passes(model: onnx.ModelProto, passes: Iterable[GraphPass]) -> tuple[PassResult, ...]:
    """Run ``passes`` in order, in place.

    Returns:
        What each changed.

    Raises:
        GraphError: a pass met a graph that it is not for, or did not do what it promises.
    """
    results = []
    for one in passes:
        _demand(one.requires(model), f"{one.name} needs another graph")
        results.append(one.apply(model))
        _demand(one.ensures(model), f"{one.name} failed")
    return tuple(results)


def passes_for(attention: str) -> list[GraphPass]:
    """What makes TensorRT's copy of a canonical graph, in order."""
    rewrite = native_attention(lacks_plugin) if attention == "plugin" else native_attention()
    return [rewrite, DECOMPOSABLE_ATTENTION, DROP_FUNCTIONS]


def attention_nodes(model: onnx.ModelProto) -> Nodes:
    """The nodes of `toprl::FlashAttention`."""
    return [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, OPERATOR)]


def lacks_plugin(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether the plugin has no kernel for an attention node."""
    return head_dim(model, node) not in HEAD_DIMS


def head_dim(model: onnx.ModelProto, node: onnx.NodeProto) -> int | None:
    """The width of a head of an attention node; None where the graph does not say it."""
    values = (*model.graph.value_info, *model.graph.input)
    query = next((value for value in values if value.name == node.input[0]), None)
    return None if query is None else query.type.tensor_type.shape.dim[-1].dim_value


def native_attention(chosen: Chosen = lambda model, node: True) -> GraphPass:
    """Write `toprl::FlashAttention` as the ONNX operator `Attention`, which TensorRT reads as its own attention layer.

    Both scale q kᵀ by ``scale`` and take a boolean mask that is true where a query may attend, so inputs and attributes
    stay. `Attention` could also mark causality, but TensorRT takes no mask beside that, and the mask already says it.

    Requires: opset 23, and some node of the operator. Ensures: no node that was chosen is left.

    Args:
        chosen: picks the nodes; the others are left to the plugin.
    """
    name = "native-attention"

    def picked(model: onnx.ModelProto) -> Nodes:
        return [node for node in attention_nodes(model) if chosen(model, node)]

    def apply(model: onnx.ModelProto) -> PassResult:
        found = picked(model)
        for node in found:
            node.domain, node.op_type = "", "Attention"
        return PassResult(name, len(found), len(found))

    def ensures(model: onnx.ModelProto) -> str | None:
        left = [node.name for node in picked(model)]
        return f"{left} are not rewritten" if left else None

    return GraphPass(name, _has_attention, apply, ensures)


def _has_attention(model: onnx.ModelProto) -> str | None:
    versions = {opset.domain: opset.version for opset in model.opset_import}
    if versions.get("") != OPSET:
        return f"its opset is {versions.get('')}, expected {OPSET}"
    # Every graph of a bundle attends. One without the operator was traced past it, and would build to something slower.
    return None if attention_nodes(model) else f"it has no node of {DOMAIN}::{OPERATOR}"


def _mark_decomposable(model: onnx.ModelProto) -> PassResult:
    """Let TensorRT compute an attention layer by several kernels where it has no fused one for it.

    Without the mark such a layer fails the build: every one in fp32, and in fp16 and bf16 those of unusual shapes, such
    as one query over two heads. Where there is a fused kernel it is used all the same. ONNX Runtime refuses the
    attribute, which is one reason why TensorRT gets a copy of the graph.

    Requires: nothing, for where the plugin takes all nodes there is none to mark. Ensures: every `Attention` has the
    mark once.
    """
    found = _native_nodes(model)
    unmarked = [node for node in found if not _marks(node)]
    for node in unmarked:
        node.attribute.append(onnx.helper.make_attribute(MARK, 1))
    return PassResult("decomposable-attention", len(found), len(unmarked))


def _all_marked(model: onnx.ModelProto) -> str | None:
    wrong = [node.name for node in _native_nodes(model) if _marks(node) != [1]]
    return f"{wrong} are not marked" if wrong else None


def _native_nodes(model: onnx.ModelProto) -> Nodes:
    return [node for node in model.graph.node if (node.domain, node.op_type) == ("", "Attention")]


def _marks(node: onnx.NodeProto) -> list[int]:
    return [attribute.i for attribute in node.attribute if attribute.name == MARK]


def _has_function(model: onnx.ModelProto) -> str | None:
    names = sorted(function.name for function in model.functions)
    return None if names == [OPERATOR] else f"its functions are {names}"


def _drop_functions(model: onnx.ModelProto) -> PassResult:
    """Leave `toprl::FlashAttention` to the plugin: its function body goes, the nodes stay.

    TensorRT's parser prefers a function in the file to a plugin of the same name, so the plugin would never be called.

    Requires: the body is in the file. Ensures: no functions, and as many nodes as before.
    """
    found = len(model.functions)
    del model.functions[:]
    return PassResult("drop-functions", found, found)


def _no_functions(model: onnx.ModelProto) -> str | None:
    return "functions are left" if model.functions else None


def _demand(wrong: str | None, what: str) -> None:
    if wrong is not None:
        raise GraphError(f"pass {what}: {wrong}")


DECOMPOSABLE_ATTENTION = GraphPass("decomposable-attention", lambda model: None, _mark_decomposable, _all_marked)
DROP_FUNCTIONS = GraphPass("drop-functions", _has_function, _drop_functions, _no_functions)
