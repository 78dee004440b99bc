"""TensorRT's top-k layer takes at most 3,840 elements, and sorting is a top-k of all of them.

Beyond that a fixed k fails the build, and a dynamic one builds with a warning and fails when it is run.

Requires: nothing. Ensures: no top-k of the graph can exceed the limit in the largest request. The graph is not changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import numpy_helper

from toprl_export.errors import UserError
from toprl_export.pruning.plan import TENSORRT_TOPK_LIMIT

Dimension = onnx.TensorShapeProto.Dimension


def check_top_k(model: onnx.ModelProto, largest: Mapping[str, int]) -> None:
    """Return when every `TopK` stays within the limit.

    Args:
        model: any graph.
        largest: sizes of the largest request by the names of dynamic sizes; a size that it does not name is not
            checked here, but the builder's warning about it is an error (`PlanBuilder`).

    Raises:
        UserError: one does not; the message says what to lower.
    """
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*model.graph.value_info, *model.graph.input)}
    constants = _constants(model)
    for node in model.graph.node:
        if node.op_type != "TopK":
            continue
        count = constants.get(node.input[1]) or _sorted(node, shapes.get(node.input[0], ()), largest)
        if count is not None and count > TENSORRT_TOPK_LIMIT:
            raise UserError(
                f"the graph selects or sorts up to {count} tokens at once, and TensorRT at most {TENSORRT_TOPK_LIMIT}: "
                "lower --max-text, or use --engine onnx"
            )


def _sorted(node: onnx.NodeProto, sizes: Sequence[Dimension], largest: Mapping[str, int]) -> int | None:
    """Elements along a dynamic axis, of which k cannot be more; None where that is not known.

    An axis of fixed size is that of all visual tokens, and its k a keep count, which the profile bounds.
    """
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
    return largest.get(sizes[axis].dim_param) if sizes else None


def _constants(model: onnx.ModelProto) -> dict[str, int]:
    """Single integers that the graph holds, by name."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        name: int(numpy_helper.to_array(tensor).item())
        for name, tensor in tensors.items()
        if tensor.data_type == onnx.TensorProto.INT64 and tensor.dims in ([], [1]) and tensor.data_location == 0
    }
