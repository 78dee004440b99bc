"""TensorRT's top-k layer takes at most 3,840 elements, and sorting is a top-k of all of them.

Beyond that a fixed k fails the build, and one that is known only at run time builds with a warning and fails when it is
run. Those are keep counts, which the profile bounds (`profiles`); should one be anything else, the builder's warning is
an error (`PlanBuilder`).

Requires: nothing. Ensures: no fixed k of the graph exceeds the limit. The graph is not changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toprl_export.errors import UserError

if TYPE_CHECKING:
    import onnx

TOP_K_LIMIT = 3840
"""Largest K of TensorRT's TopK layer, through which both the choice and the ordering of tokens go."""


def check_top_k(model: onnx.ModelProto) -> None:
    """Check that every fixed `TopK` stays within the limit.

    Raises:
        UserError: one does not.
    """
    constants = _constants(model)
    counts = [constants.get(node.input[1], 0) for node in model.graph.node if node.op_type == "TopK"]
    if max(counts, default=0) > TOP_K_LIMIT:
        raise UserError(
            f"the graph selects or sorts {max(counts)} tokens at once, and TensorRT at most {TOP_K_LIMIT}: "
            "prune by another method, or use --engine onnx"
        )


def _constants(model: onnx.ModelProto) -> dict[str, int]:
    """Single integers that the graph holds, by name."""
    import onnx
    from onnx import numpy_helper

    return {
        tensor.name: int(numpy_helper.to_array(tensor).item())
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT64
        and list(tensor.dims) in ([], [1])
        and tensor.data_location == onnx.TensorProto.DEFAULT
    }
