"""More tokens than TensorRT's top-k layer takes are refused before a build."""

from __future__ import annotations

import onnx
import pytest

from tests.support.onnx_bundle import grouped_bundle, staged_bundle
from toprl_engines.trt.passes.top_k_limit import check_top_k
from toprl_export.errors import UserError


@pytest.mark.parametrize(
    ("k", "refused"),
    [("many", 4000), ("few", None), ("requested", None)],
    ids=["too many", "few", "bounded by the profile"],
)
def test_more_than_top_k_takes_is_refused(k, refused):
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[batch,5000] x, int64[1] requested) => (float[batch,m] v)'
        f" <int64[1] many = {{4000}}, int64[1] few = {{10}}> {{ v, i = TopK <largest = 0> (x, {k}) }}"
    )
    if refused is None:
        check_top_k(model)
        return
    with pytest.raises(UserError, match=f"sorts {refused} tokens at once, and TensorRT at most 3840: prune by another"):
        check_top_k(model)


def test_every_top_k_of_an_exported_graph_is_a_keep_count_or_fixed():
    """Or else `check_top_k` would have more to ask for."""
    for built in (staged_bundle, grouped_bundle):
        model = onnx.load(built().bundle.path("prefill"), load_external_data=False)
        shapes = {
            value.name: value.type.tensor_type.shape.dim for value in (*model.graph.value_info, *model.graph.output)
        }
        fixed = {tensor.name for tensor in model.graph.initializer}
        sorts = [node for node in model.graph.node if node.op_type == "TopK"]
        assert sorts
        for node in sorts:
            size = shapes[node.output[1]][-1]
            assert node.input[1] in fixed or size.dim_param.startswith("kept_")
