"""The attention op in torch and in ONNX."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.tiny_llava import tiny_adapter, tiny_pixels, tiny_tokens
from toprl_engines.attention.tracing import DOMAIN, IMPLEMENTATION, flash_attention, function_proto, routed_attention
from toprl_export.models.reference import ReferenceRunner


def naive(query, key, value, mask, scale):
    """The definition, in float64, key-value heads repeated."""
    repeat = query.shape[1] // key.shape[1]
    key, value = (x.double().repeat_interleave(repeat, dim=1) for x in (key, value))
    scores = torch.einsum("bhqd,bhkd->bhqk", query.double(), key) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), value).float()


def operands(kv_heads: int = 2, masked: bool = True):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 5, 16, generator=generator) * 3
    key, value = (torch.randn(2, kv_heads, 7, 16, generator=generator) * 3 for _ in range(2))
    mask = torch.rand(2, 1, 5, 7, generator=generator) > 0.4
    mask[..., 0] = True
    return query, key, value, mask if masked else None, 0.2


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [True, False])
def test_equals_the_definition(kv_heads, masked):
    assert torch.allclose(flash_attention(*operands(kv_heads, masked)), naive(*operands(kv_heads, masked)), atol=1e-5)


def test_the_mask_and_the_scale_matter():
    query, key, value, mask, scale = operands()
    right = flash_attention(query, key, value, mask, scale)
    assert (right - naive(query, key, value, None, scale)).abs().max() > 0.1
    assert (right - naive(query, key, value, mask, 1.0)).abs().max() > 0.1


def test_is_a_well_formed_operator():
    torch.library.opcheck(flash_attention, operands(), test_utils=("test_schema", "test_faketensor"))


class CountCalls(TorchDispatchMode):
    """Counts the op's calls."""

    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += function is torch.ops.toprl.FlashAttention.default
        return function(*args, **(kwargs or {}))


def prefill_logits(adapter):
    runner = ReferenceRunner(adapter)
    visual = runner.encode_image(tiny_pixels().numpy())
    return runner.prefill(tiny_tokens(adapter), visual).logits


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_every_layer_is_routed_and_gives_the_same(kv_heads):
    adapter = tiny_adapter(kv_heads=kv_heads, layers=2)
    before = prefill_logits(adapter)
    with routed_attention(adapter.model), CountCalls() as counter:
        routed = prefill_logits(adapter)
    assert counter.calls == 2 + 2  # vision layers and decoder layers
    assert torch.allclose(routed, before, atol=1e-4)


def test_the_former_implementations_come_back():
    adapter = tiny_adapter(layers=2)
    text, vision = adapter.model.config.text_config, adapter.model.config.vision_config
    vision._attn_implementation = "eager"
    former = text._attn_implementation
    with pytest.raises(ZeroDivisionError), routed_attention(adapter.model):
        assert (text._attn_implementation, vision._attn_implementation) == (IMPLEMENTATION, IMPLEMENTATION)
        raise ZeroDivisionError
    assert (text._attn_implementation, vision._attn_implementation) == (former, "eager")
    with CountCalls() as counter:
        prefill_logits(adapter)
    assert counter.calls == 0


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
