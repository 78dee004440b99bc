"""FLOPs counted from a built graph: what it really multiplies, at the sizes of a real request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
from numpy.typing import NDArray

Sizes = Sequence[int]

_PROBE = "sizes_of_"
_Counted = tuple[onnx.NodeProto, list[str]]
"""A node and the names of the probes on its operands."""


@dataclass(frozen=True)
class GraphFlops:
    """Two per multiply-accumulate, by operator; elementwise work is not counted."""

    by_operator: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.by_operator.values())


def count_flops(path: Path, feeds: Mapping[str, NDArray[Any]]) -> GraphFlops:
    """Run the graph once with a probe on every operand of a MatMul, Gemm, Conv or Attention, functions inlined.

    What a loop does counts as often as it is done.

    Args:
        path: the ONNX file, its weights beside it.
        feeds: its inputs; the count holds for their sizes and keep counts.

    Returns:
        The FLOPs of one run.
    """
    model = onnx.inliner.inline_local_functions(onnx.load(str(path), load_external_data=False))
    del model.graph.output[:]
    counted = [*_probed(model.graph, _PROBE)]
    for loop in [node for node in model.graph.node if node.op_type == "Loop"]:
        counted += _probed_rounds(loop)
    probed = list(dict.fromkeys(name for _, probes in counted for name in probes))
    model.graph.output.extend(map(_shape_output, probed))
    measured = dict(zip(probed, _run_beside(model, path, feeds), strict=True))
    totals: dict[str, int] = {}
    for node, probes in counted:
        # [rounds, rank] each; outside loops there is one round.
        operands = [np.atleast_2d(measured[name]).tolist() for name in probes]
        flops = 2 * sum(_FORMULAS[node.op_type](node, [*sizes]) for sizes in zip(*operands, strict=True))
        totals[node.op_type] = totals.get(node.op_type, 0) + flops
    return GraphFlops(totals)


def _probed(graph: onnx.GraphProto, prefix: str) -> list[_Counted]:
    """Add a probe for each operand of the graph's counted nodes; the probes are not among its outputs yet."""
    counted = [(node, [name for name in node.input[:3] if name]) for node in graph.node if node.op_type in _FORMULAS]
    for name in sorted({name for _, operands in counted for name in operands}):
        graph.node.append(onnx.helper.make_node("Shape", [name], [prefix + name]))
    return [(node, [prefix + name for name in operands]) for node, operands in counted]


def _probed_rounds(loop: onnx.NodeProto) -> list[_Counted]:
    """The same for a loop's body; its probes become outputs of the loop that stack what every round sees."""
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    counted = _probed(body, f"{_PROBE}{loop.output[0]}_")
    probes = list(dict.fromkeys(name for _, operands in counted for name in operands))
    loop.output.extend([""] * (len(body.output) - 1 - len(loop.output)))  # the body's first output is its condition
    loop.output.extend(f"{name}_rounds" for name in probes)
    body.output.extend(_shape_output(name) for name in probes)
    return [(node, [f"{name}_rounds" for name in operands]) for node, operands in counted]


def _shape_output(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None)


def _run_beside(model: onnx.ModelProto, path: Path, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[np.int64]]:
    """Run a model that is in memory and whose weights lie beside ``path``, exactly as written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    # Without its former outputs the graph may leave an input unused, and a graph with fixed keep counts takes none.
    taken = {value.name for value in session.get_inputs()}
    outputs: list[NDArray[np.int64]] = session.run(None, {name: feed for name, feed in feeds.items() if name in taken})
    return outputs


def _matmul(node: onnx.NodeProto, sizes: list[Sizes]) -> int:
    """``[…, m, k] × […, k, n]``, batch sizes broadcast."""
    left, right = sizes[0], sizes[1]
    batch = prod(np.broadcast_shapes(tuple(left[:-2]), tuple(right[:-2])))
    return batch * prod(left[-2:]) * right[-1]


def _gemm(node: onnx.NodeProto, sizes: list[Sizes]) -> int:
    transposed = {attribute.name: attribute.i for attribute in node.attribute}
    outputs = sizes[1][0] if transposed.get("transB") else sizes[1][1]
    return prod(sizes[0]) * outputs


def _attention(node: onnx.NodeProto, sizes: list[Sizes]) -> int:
    """``q kᵀ`` and the weights times ``v``; ``[b, heads, s, head_dim]``, all pairs: masked ones are multiplied too."""
    (batch, heads, queries, width), keys, value_width = sizes[0], sizes[1][2], sizes[2][3]
    return batch * heads * queries * keys * (width + value_width)


def _conv(node: onnx.NodeProto, sizes: list[Sizes]) -> int:
    """2-D; strides and padding come from the node."""
    attributes = {attribute.name: list(attribute.ints) for attribute in node.attribute}
    kernel = sizes[1][2:]
    strides = attributes.get("strides", [1] * len(kernel))
    pads = attributes.get("pads", [0] * 2 * len(kernel))
    dilations = attributes.get("dilations", [1] * len(kernel))
    places = 1
    for axis, size in enumerate(sizes[0][2:]):
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        places *= (size + pads[axis] + pads[axis + len(kernel)] - reach) // strides[axis] + 1
    return sizes[0][0] * places * prod(sizes[1])


_FORMULAS: dict[str, Callable[[onnx.NodeProto, list[Sizes]], int]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Attention": _attention,
    "Conv": _conv,
}
