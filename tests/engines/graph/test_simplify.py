"""Small nodes are left out where that is sure to change nothing; every rule has a case that it must leave alone."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnxscript import optimizer

from toprl_engines.graph.passes import (
    CONSTANT_RESHAPE,
    ELEMENT_OF_VECTOR,
    ROW_BY_SCALAR,
    ROW_GATHER,
    constant_sizes,
    simplify,
)

GENERATOR = np.random.default_rng(0)
VALUES = {
    "x": GENERATOR.normal(size=(2, 5, 4)).astype(np.float32),
    "index": np.array([[0, 4, 2], [1, 1, 3]]),
    "numbers": GENERATOR.integers(0, 5, size=(2, 3, 4)),
    "stack": GENERATOR.normal(size=(3, 2, 4)).astype(np.float32),
    "which": np.array(2),
    "one_of": np.array([1]),
    "counts": np.array([3, 2]),
    "somewhere": np.array(0),
    "scores": GENERATOR.normal(size=(2, 6)).astype(np.float32),
}
TYPES = {
    "x": "float[b,s,4]",
    "index": "int64[b,k]",
    "numbers": "int64[b,k,4]",
    "stack": "float[3,2,4]",
    "which": "int64",
    "one_of": "int64[1]",
    "counts": "int64[2]",
    "somewhere": "int64",
    "scores": "float[b,6]",
}

ROWS = """
    inner = Constant <value_ints = [-1]> ()
    row = Unsqueeze (index, inner)
    sizes = Constant <value_ints = [1, 1, 4]> ()
    spread = Expand (row, sizes)
    y = GatherElements <axis = 1> (x, spread)
"""
NUMBERS = """
    sizes = Constant <value_ints = [1, 1, 4]> ()
    spread = Expand (numbers, sizes)
    y = GatherElements <axis = 1> (x, spread)
"""
HEADS = """
    b = Shape <start = 0, end = 1> (x)
    s = Shape <start = 1, end = 2> (x)
    heads = Constant <value_ints = [2, 2]> ()
    sizes = Concat <axis = 0> (b, s, heads)
    y = Reshape (x, sizes)
"""
FLATTENED = """
    b = Shape <start = 0, end = 1> (x)
    s = Shape <start = 1, end = 2> (x)
    both = Mul (b, s)
    width = Constant <value_ints = [4]> ()
    sizes = Concat <axis = 0> (both, width)
    flat = Reshape (x, sizes)
    again = Concat <axis = 0> (b, s, width)
    y = Reshape (flat, again)
"""
PICKED = """
    form = Constant <value_ints = [1]> ()
    vector_of_one = Reshape (which, form)
    row = Gather <axis = 0> (stack, vector_of_one)
    first = Constant <value_ints = [0]> ()
    y = Squeeze (row, first)
"""
PICKED_BY_VECTOR = PICKED.replace("Reshape (which, form)", "Identity (one_of)")
COUNT = """
    place = Constant <value_int = 1> ()
    scalar = Gather <axis = 0> (counts, place)
    form = Constant <value_ints = [-1]> ()
    vector = Reshape (scalar, form)
    zero = Constant <value_int = 0> ()
    again = Gather <axis = 0> (vector, zero)
    count = Reshape (again, form)
    values, y = TopK (scores, count)
"""
COUNT_OF_INPUT = COUNT.replace("place = Constant <value_int = 1> ()", "place = Identity (somewhere)")


def graph(body: str, result: str) -> ir.Model:
    taken = [name for name in VALUES if re.search(rf"\b{name}\b", body)]
    inputs = ", ".join(f"{TYPES[name]} {name}" for name in taken)
    text = f'<ir_version: 10, opset_import: ["" : 23]> g ({inputs}) => ({result} y) {{ {body} }}'
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), data_prop=True))


def run(model: ir.Model) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: VALUES[value.name] for value in session.get_inputs()})[0]


def simplified(body: str, result: str, *changed: str) -> Counter:
    """The operators left after the rewrites, which must not change what comes out; ``changed`` are those that apply."""
    model = graph(body, result)
    before = run(model)
    assert [one.name for one in simplify(model) if one.changed] == list(changed)
    optimizer.optimize_ir(model, inline=False)
    assert np.array_equal(run(model), before)
    return Counter(node.op_type for node in model.graph)


def test_one_index_for_all_numbers_of_a_token_copies_whole_rows():
    assert simplified(ROWS, "float[b,k,4]", ROW_GATHER) == Counter(Unsqueeze=1, GatherND=1)


def test_an_index_for_every_number_is_left_alone():
    assert simplified(NUMBERS, "float[b,k,4]")["GatherElements"] == 1


def test_sizes_that_stay_are_copied():
    assert simplified(HEADS, "float[b,s,2,2]", CONSTANT_RESHAPE) == Counter(Reshape=1)


def test_two_sizes_that_change_are_computed():
    left = simplified(FLATTENED, "float[b,s,4]", CONSTANT_RESHAPE)
    assert left["Reshape"] == 2 and left["Shape"] > 0


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (["b", "s", 12], ["b", "s", 3, 4], [0, 0, 3, 4]),
        (["b", "s", 12], ["b", "t", 12], [0, -1, 12]),
        (["b", "s"], ["s", "b"], [-1, -1]),
        (["b", 3], ["b", 3, "c"], [0, 3, -1]),
        ([None, 3], [None, 3], [-1, 3]),
    ],
)
def test_sizes_are_those_of_the_same_axis(before, after, expected):
    assert constant_sizes(ir.Shape(before), ir.Shape(after)) == expected


def test_one_row_is_picked_by_a_scalar():
    assert simplified(PICKED, "float[2,4]", ROW_BY_SCALAR) == Counter(Gather=1)


def test_a_row_picked_by_a_vector_is_left_alone():
    assert simplified(PICKED_BY_VECTOR, "float[2,4]") == Counter(Gather=1, Squeeze=1)


def test_a_count_is_taken_from_its_vector_at_once():
    assert simplified(COUNT, "int64[b,c]", ELEMENT_OF_VECTOR) == Counter(Gather=1, TopK=1)


def test_a_count_from_a_place_known_only_at_run_time_is_left_alone():
    assert simplified(COUNT_OF_INPUT, "int64[b,c]")["Reshape"] > 0
