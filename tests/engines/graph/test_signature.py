"""The check of exported graphs finds what tracing gets wrong silently."""

from __future__ import annotations

import onnx
import pytest

from toprl_engines.graph.signature import GraphError, GraphSpec, TensorSpec, check_graph

SPEC = GraphSpec((TensorSpec("x", ("batch", 3)),), (TensorSpec("y", ("batch", 3)),))


def write(path, inputs="x", sizes="batch", middle="m", output="batch", dtype="float"):
    text = (
        f'<ir_version: 10, opset_import: ["" : 23]> g ({dtype}[{sizes},3] {inputs}) => ({dtype}[{output},3] y) '
        f"{{ {middle} = Neg ({inputs})  y = Abs ({middle}) }}"
    )
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def test_a_right_graph_passes(tmp_path):
    check_graph(write(tmp_path / "g.onnx"), SPEC)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": "2", "output": "2"}, r"input x has sizes \[2, 3\], expected \['batch', 3\]"),
        ({"output": "rows"}, r"output y has sizes \['rows', 3\]"),
        ({"inputs": "z"}, "inputs are z, expected x"),
        ({"middle": "_m"}, "leading underscore: _m"),
        ({"dtype": "float16"}, "input x is float16, expected float32"),
    ],
)
def test_a_wrong_graph_is_refused(tmp_path, change, message):
    with pytest.raises(GraphError, match=message):
        check_graph(write(tmp_path / "g.onnx", **change), SPEC)


def test_an_invalid_graph_is_refused(tmp_path):
    path = tmp_path / "g.onnx"
    model = onnx.load(write(path))
    model.graph.node[0].input[0] = "nowhere"
    onnx.save(model, path)
    with pytest.raises(onnx.checker.ValidationError):
        check_graph(path, SPEC)
