"""FLOPs from a graph against hand-worked counts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.support.onnx_bundle import staged_bundle
from toprl_engines.attention.tracing import function_proto
from toprl_engines.graph.flops import count_flops
from toprl_engines.ort.engine import ONNXRuntimeEngine


def write(path, body: str):
    header = '<ir_version: 10, opset_import: ["" : 23, "toprl" : 1]>'
    model = onnx.parser.parse_model(f"{header} g {body}")
    model.functions.append(function_proto())
    onnx.save(model, path)
    return path


def zeros(**sizes):
    return {name: np.zeros(shape, dtype=np.float32) for name, shape in sizes.items()}


@pytest.mark.parametrize(
    ("body", "feeds", "expected"),
    [
        ("(float[b,s,4] x, float[4,6] w) => (float[b,s,6] y) { y = MatMul (x, w) }",
         zeros(x=(2, 5, 4), w=(4, 6)), {"MatMul": 2 * 2 * 5 * 4 * 6}),
        ("(float[b,1,s,4] x, float[3,4,6] w) => (float[b,3,s,6] y) { y = MatMul (x, w) }",
         zeros(x=(2, 1, 5, 4), w=(3, 4, 6)), {"MatMul": 2 * 2 * 3 * 5 * 4 * 6}),
        ("(float[b,4] x, float[6,4] w) => (float[b,6] y) { y = Gemm <transB = 1> (x, w) }",
         zeros(x=(7, 4), w=(6, 4)), {"Gemm": 2 * 7 * 4 * 6}),
        ("(float[b,3,h,h] x, float[8,3,2,2] w) => (float[b,8,o,o] y) { y = Conv <strides = [2, 2]> (x, w) }",
         zeros(x=(2, 3, 10, 10), w=(8, 3, 2, 2)), {"Conv": 2 * 2 * 25 * 8 * 3 * 4}),
        ("(float[b,3,h,h] x, float[8,3,3,3] w) => (float[b,8,h,h] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w) }",
         zeros(x=(1, 3, 6, 6), w=(8, 3, 3, 3)), {"Conv": 2 * 36 * 8 * 3 * 9}),
        ("(float[b,4,q,8] x, float[b,2,k,8] w) => (float[b,4,q,8] y) "
         "{ y = toprl.FlashAttention <scale = 0.5> (x, w, w) }",
         zeros(x=(2, 4, 3, 8), w=(2, 2, 5, 8)), {"Attention": 2 * 2 * 4 * 3 * 5 * (8 + 8)}),
    ],
)  # fmt: skip
def test_one_operator(tmp_path, body, feeds, expected):
    assert count_flops(write(tmp_path / "g.onnx", body), feeds).by_operator == expected


def test_a_loop_counts_as_often_as_it_goes_round(tmp_path):
    """Three rounds of [2, 4] × [4, 4], and once before the loop a product of an operand that the body uses too."""
    body = (
        "(float[b,4] x, float[4,4] w) => (float[b,4] z) { "
        "y = MatMul (x, w) "
        "rounds = Constant <value_int = 3> () "
        "on = Cast <to = 9> (rounds) "
        "z = Loop (rounds, on, y) <body = body (int64 i, bool c, float[b,4] state) => (bool go, float[b,4] next) "
        "{ go = Identity (c) next = MatMul (state, w) }> }"
    )
    expected = {"MatMul": (1 + 3) * 2 * 2 * 4 * 4}
    assert count_flops(write(tmp_path / "g.onnx", body), zeros(x=(2, 4), w=(4, 4))).by_operator == expected


def layer_flops(length: int) -> int:
    """One layer of the tiny decoder: width 128, 2 heads of 64, feed-forward 192."""
    return 2 * length * (4 * 128 * 128 + 3 * 128 * 192) + 2 * length * length * 2 * (64 + 64)


def actor_flops(tokens: int) -> int:
    """128 → 16 → 16 → 16 → 1: the log-odds, for which the two logits need not be told apart."""
    return 2 * tokens * (128 * 16 + 2 * 16 * 16 + 16)


HEAD = 2 * 128 * 96


def test_the_unpruned_graph_does_what_the_architecture_says():
    built = staged_bundle().bundle
    assert ONNXRuntimeEngine().graph_flops(built, 2, 40, None) == 2 * (3 * layer_flops(40) + HEAD)


@pytest.mark.parametrize("counts", [(25, 25, 25), (20, 11, 3)])
def test_the_pruned_graph_multiplies_only_kept_tokens_and_pays_for_the_actor(counts):
    built = staged_bundle().bundle
    before = (25, *counts)
    expected = HEAD + sum(layer_flops(15 + k) + actor_flops(n) for k, n in zip(counts, before, strict=False))
    assert ONNXRuntimeEngine().graph_flops(built, 1, 40, counts) == expected
