"""One weight file for several graphs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from toprl_engines.graph.weights import ALIGNMENT, INLINE_BELOW, WeightFile


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
