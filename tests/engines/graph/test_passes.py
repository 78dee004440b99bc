"""Rewrites keep the result; the rotary fusion refuses tables whose halves differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from toprl_engines.graph.passes import (
    ROTARY_EMBEDDING,
    PassResult,
    check_passes,
    clean_names,
    optimise,
    rename_sizes,
)
from toprl_engines.graph.signature import GraphError

ROTARY = """
<ir_version: 10, opset_import: ["" : 23]>
rotary (float[b,2,s,8] x, float[b,t,4] angles, float[b,t,4] other, int64[b,s] rows)
    => (float[b,2,s,8] turned)
<int64[3] spread = {1, 1, 8}, int64[1] inner = {-1}, int64[1] one = {1}, int64[1] zero = {0}, int64[1] four = {4},
 int64[1] last = {3}, int64[1] end = {9223372036854775807}>
{
    table = Concat <axis = -1> (angles, SECOND)
    cos = Cos (table)
    sin = Sin (table)
    row = Unsqueeze (rows, inner)
    everywhere = Expand (row, spread)
    c = GatherElements <axis = 1> (cos, everywhere)
    z = GatherElements <axis = 1> (sin, everywhere)
    c4 = Unsqueeze (c, one)
    z4 = Unsqueeze (z, one)
    direct = Mul (x, c4)
    left = Slice (x, zero, four, last, one)
    right = Slice (x, four, end, last, one)
    minus = Neg (right)
    swapped = Concat <axis = -1> (minus, left)
    crossed = Mul (swapped, z4)
    turned = Add (direct, crossed)
}
"""


def rotary(second: str) -> ir.Model:
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(ROTARY.replace("SECOND", second)))
    # Inference cannot know the gathered tables' rank; tracing does.
    return ir.from_proto(proto)


def run(model: ir.Model):
    generator = np.random.default_rng(0)
    feeds = {
        "x": generator.normal(size=(2, 2, 3, 8)).astype(np.float32),
        "angles": generator.normal(size=(2, 5, 4)).astype(np.float32),
        "other": generator.normal(size=(2, 5, 4)).astype(np.float32),
        "rows": np.array([[0, 2, 4], [0, 1, 4]]),
    }
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}
    return session.run(None, {name: feed for name, feed in feeds.items() if name in taken})[0]


def done(results: Iterable[PassResult]) -> dict[str, tuple[int, int]]:
    """Places matched and rewritten, by pass."""
    return {one.name: (one.matched, one.changed) for one in results}


def operators(model: ir.Model) -> Counter:
    return Counter(node.op_type for node in model.graph)


def test_rotary_embedding_is_fused_through_gathered_tables():
    expected = run(rotary("angles"))
    model = rotary("angles")
    assert done(optimise(model))[ROTARY_EMBEDDING] == (1, 1)
    assert operators(model)["RotaryEmbedding"] == 1
    assert not {"Neg", "Slice"} & set(operators(model))
    assert np.abs(run(model) - expected).max() < 1e-6


def test_rotary_embedding_is_left_alone_where_the_halves_differ():
    expected = run(rotary("other"))
    model = rotary("other")
    results = optimise(model)
    assert done(results)[ROTARY_EMBEDDING] == (1, 0)
    with pytest.raises(GraphError, match=r"decode: the pass rotary-embedding matched 1 places and rewrote 0, expected"):
        check_passes("decode", results, {ROTARY_EMBEDDING: 1})
    assert operators(model)["RotaryEmbedding"] == 0
    assert np.array_equal(run(model), expected)
    assert np.abs(expected - run(rotary("angles"))).max() > 0.1


def test_a_required_pass_that_was_not_run_is_missed():
    ran = (PassResult("row-gather", 3, 3),)
    check_passes("prefill", ran, {"row-gather": 3})
    for required, changed in (({"row-gather": 4}, 3), ({"rms-normalization": 1}, 0)):
        with pytest.raises(GraphError, match=f"rewrote {changed}, expected at least"):
            check_passes("prefill", ran, required)


def test_names_lose_leading_underscores_and_stay_distinct():
    model = ir.from_proto(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 23]> g (float[n] x) => (float[n] y) '
            "{ _a = Neg (x)  a = Abs (_a)  __a = Add (_a, a)  y = Neg (__a) }"
        )
    )
    clean_names(model)
    names = [output.name for node in model.graph for output in node.outputs]
    assert names[1] == "a" and names[3] == "y"
    assert len(set(names)) == 4 and not any(name.startswith("_") for name in names)


@pytest.mark.parametrize(("names", "sizes"), [({"n + 3": "sequence"}, ["sequence", 4]), ({}, ["n + 3", 4])])
def test_sizes_are_renamed(names, sizes):
    shape = ir.Shape(["n + 3", 4])
    value = ir.Value(name="x", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
    model = ir.Model(ir.Graph([value], [value], nodes=[], opset_imports={"": 23}), ir_version=10)
    rename_sizes(model, names)
    assert [getattr(size, "value", size) for size in value.shape] == sizes
