"""The op's ONNX function: ONNX Runtime runs it by inlining, and only with it."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from toprl_engines.attention.tracing import DOMAIN, flash_attention, function_proto


def model(masked: bool, with_function: bool = True) -> bytes:
    names = ["query", "key", "value", "mask"][: 4 if masked else 3]
    node = helper.make_node("FlashAttention", names, ["attended"], domain=DOMAIN, scale=0.2)
    sizes = {
        "query": ["b", 4, "q", 16],
        "key": ["b", 2, "k", 16],
        "value": ["b", 2, "k", 16],
        "mask": ["b", 1, "q", "k"],
    }
    types = dict.fromkeys(sizes, TensorProto.FLOAT) | {"mask": TensorProto.BOOL}
    graph = helper.make_graph(
        [node],
        "attention",
        [helper.make_tensor_value_info(name, types[name], sizes[name]) for name in names],
        [helper.make_tensor_value_info("attended", TensorProto.FLOAT, ["b", 4, "q", 16])],
    )
    functions = [function_proto()] if with_function else []
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    built = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(built, full_check=with_function)
    return built.SerializeToString()


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("batch", "queries", "keys"), [(1, 1, 9), (3, 5, 7)])
def test_onnx_runtime_agrees_with_torch(masked, batch, queries, keys):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, 4, queries, 16, generator=generator)
    key, value = (torch.randn(batch, 2, keys, 16, generator=generator) for _ in range(2))
    mask = torch.rand(batch, 1, queries, keys, generator=generator) > 0.4
    mask[..., 0] = True
    session = onnxruntime.InferenceSession(model(masked), providers=["CPUExecutionProvider"])
    feeds = {"query": query, "key": key, "value": value} | ({"mask": mask} if masked else {})
    (attended,) = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
    expected = flash_attention(query, key, value, mask if masked else None, 0.2)
    assert (torch.from_numpy(attended) - expected).abs().max() < 1e-5


def test_without_the_function_nothing_implements_the_node():
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="FlashAttention"):
        onnxruntime.InferenceSession(model(masked=True, with_function=False), providers=["CPUExecutionProvider"])
