"""Weights are cast to a precision, and stored once for all graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from tests.support.half_graphs import half_graphs
from tests.support.tiny_llava import tiny_adapter, tiny_pixels, tiny_tokens
from toprl_engines.graph.signature import dtype_of
from toprl_engines.graph.weights import ALIGNMENT, INLINE_BELOW, WeightFile, in_precision
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.pruning.scorer import Scorer, StageInputs

COUNTS = (12, 5)


def test_weights_are_cast_and_rotary_frequencies_are_not():
    adapter = tiny_adapter(layers=1)
    before = {name: tensor.clone() for name, tensor in adapter.model.state_dict().items()}
    cast = in_precision(adapter, "bf16")
    assert {parameter.dtype for parameter in cast.model.parameters()} == {torch.bfloat16}
    assert cast.decoder.rotary.inv_freq.dtype == torch.float32
    assert torch.equal(cast.decoder.rotary.inv_freq, adapter.decoder.rotary.inv_freq)
    assert cast.decoder.layer(0) is not adapter.decoder.layer(0)
    after = adapter.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_type_that_is_there_takes_no_copy():
    adapter = tiny_adapter(layers=1)
    assert in_precision(adapter, "fp32") is adapter
    half = in_precision(adapter, "fp16")
    assert in_precision(half, "fp16") is half


def test_tied_weights_stay_tied():
    adapter = tiny_adapter(layers=1)
    adapter.model.lm_head.weight = adapter.model.model.language_model.embed_tokens.weight
    cast = in_precision(adapter, "fp16")
    assert cast.model.lm_head.weight is cast.model.model.language_model.embed_tokens.weight


@pytest.mark.parametrize(("precision", "half"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_caches_have_the_type_and_what_the_host_sees_stays_float32(precision, half):
    directory = half_graphs(precision).directory
    types = {}
    for name in ("vision", "prefill", "decode"):
        graph = onnx.load(directory / f"{name}.onnx", load_external_data=False).graph
        types |= {value.name: dtype_of(value) for value in (*graph.input, *graph.output)}
    assert {name for name, dtype in types.items() if dtype == half} == {
        f"{new}{kind}_{layer}" for new in ("", "new_") for kind in ("key", "value") for layer in (0, 1)
    }
    assert {types[name] for name in ("pixel_values", "visual", "logits")} == {"float32"}


@pytest.mark.parametrize(
    ("precision", "half"), [("fp16", onnx.TensorProto.FLOAT16), ("bf16", onnx.TensorProto.BFLOAT16)]
)
def test_matrices_are_half_and_actors_are_not(precision, half):
    directory = half_graphs(precision).directory
    graph = onnx.load(directory / "prefill.onnx", load_external_data=False).graph
    matrices = {t.name: t.data_type for t in graph.initializer if len(t.dims) == 2 and min(t.dims) > 2}
    assert set(matrices.values()) == {half}
    stacked = {t.name: t.data_type for t in graph.initializer if t.name.startswith("scorer.")}
    assert stacked and set(stacked.values()) == {onnx.TensorProto.FLOAT}
    assert sum(node.op_type == "RotaryEmbedding" for node in graph.node) == 4


def test_the_graph_keeps_and_computes_what_torch_does_in_that_type():
    """In fp16, which ONNX Runtime can run on a CPU; the error is below what the type's rounding costs."""
    job, directory = half_graphs("fp16").job, half_graphs("fp16").directory
    pixels = tiny_pixels(2).numpy()
    tokens = tiny_tokens(job.adapter, 2)
    visual = _run(directory / "vision.onnx", {"pixel_values": pixels})["visual"]
    feeds = {
        **{name: getattr(tokens, name) for name in ("input_ids", "attention_mask", "position_ids")},
        "visual_index": tokens.visual_index,
        "text_index": tokens.text_index,
        "visual": visual,
        "agent_index": np.asarray(1),
        "keep_counts": np.asarray(COUNTS),
    }
    found = _run(directory / "prefill.onnx", feeds)
    pruning = Pruning(job.stage_layers, COUNTS, _PickedActor(job.scorer, 1))
    half, full = (
        ReferenceRunner(adapter).prefill(tokens, torch.from_numpy(visual), pruning)
        for adapter in (in_precision(job.adapter, "fp16"), job.adapter)
    )
    for stage in range(2):
        assert np.array_equal(found[f"kept_{stage}"], half.kept[stage].numpy())
    error = np.abs(found["logits"] - half.logits.numpy()).max()
    rounding = (half.logits - full.logits).abs().max().item()
    # Two computations in half precision are each that far from the exact one.
    assert error < 2 * rounding
    assert found["key_1"].dtype == np.float16


class _PickedActor(Scorer):
    """One actor of a stack."""

    def __init__(self, stack: Scorer, index: int) -> None:
        super().__init__()
        self._stack, self._index = stack, torch.tensor(index)

    def forward(self, inputs: StageInputs) -> torch.Tensor:
        return self._stack(inputs, self._index)


def _run(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def model(**initializers: np.ndarray) -> ir.Model:
    values = [ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in initializers.items()]
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 23}, name="g")
    return ir.Model(graph, ir_version=10)


def external(proto: onnx.ModelProto) -> dict[str, dict[str, str]]:
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in proto.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }


def test_equal_tensors_are_stored_once_aligned_and_read_back(tmp_path):
    shared, own = np.arange(1000, dtype=np.float32), np.arange(700, dtype=np.float32) - 5
    with WeightFile(tmp_path / "weights.bin") as weights:
        for name, tensors in {"a": {"one": shared, "two": own}, "b": {"other": shared.copy(), "own": -own}}.items():
            built = model(**tensors)
            weights.take(built)
            ir.save(built, tmp_path / f"{name}.onnx")
    entries = {name: external(onnx.load(tmp_path / f"{name}.onnx", load_external_data=False)) for name in "ab"}
    assert entries["a"]["one"]["offset"] == entries["b"]["other"]["offset"]
    offsets = {int(entry["offset"]) for graph in entries.values() for entry in graph.values()}
    assert len(offsets) == 3 and all(offset % ALIGNMENT == 0 for offset in offsets)
    assert (tmp_path / "weights.bin").stat().st_size == max(offsets) + 700 * 4
    loaded = onnx.load(tmp_path / "b.onnx")
    read = {tensor.name: numpy_helper.to_array(tensor) for tensor in loaded.graph.initializer}
    assert np.array_equal(read["other"], shared) and np.array_equal(read["own"], -own)


def test_small_tensors_stay_in_the_graph(tmp_path):
    small, large = np.zeros(INLINE_BELOW // 8 - 1, dtype=np.int64), np.zeros(INLINE_BELOW // 8, dtype=np.int64)
    built = model(small=small, large=large)
    with WeightFile(tmp_path / "weights.bin") as weights:
        weights.take(built)
    assert set(external(ir.to_proto(built))) == {"large"}


def test_an_initializer_without_a_value_is_refused(tmp_path):
    value = ir.Value(name="lost")
    built = ir.Model(ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 23}), ir_version=10)
    with WeightFile(tmp_path / "weights.bin") as weights, pytest.raises(ValueError, match="lost"):
        weights.take(built)
