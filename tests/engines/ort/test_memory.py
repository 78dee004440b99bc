"""The big weights exist once in memory, however many graphs use them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from toprl_engines.graph.weights import WeightFile
from toprl_engines.ort.packed_weights import JointWeights
from toprl_engines.ort.packing import _save_packed

WEIGHT_BYTES = 64 << 20

MEASURE = """
import sys
from pathlib import Path
import numpy as np
import onnxruntime
from toprl_engines.ort.session import Graph, ProviderChoice

def private_bytes():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024

folder, mode = Path(sys.argv[1]), sys.argv[2]
x = np.ones((40, 4096), dtype=np.float32)
warm = onnxruntime.InferenceSession(str(folder / "small.onnx"), providers=["CPUExecutionProvider"])
before = private_bytes()
graphs = [
    Graph(
        folder / f"{name}.onnx",
        ProviderChoice("cpu", True),
        1,
        packed=mode != "mapped",
        optimised=folder / "joint" / f"{name}.onnx" if mode == "joint" else None,
    )
    for name in ("a", "b", "c")
]
outputs = [graph.run({"x": x})["y"].numpy()[0, 0] for graph in graphs]
assert outputs == [4096.0] * 3, outputs
print(private_bytes() - before)
"""


def graph(weight: np.ndarray) -> ir.Model:
    x = ir.Value(name="x", shape=ir.Shape(["n", weight.shape[0]]), type=ir.TensorType(ir.DataType.FLOAT))
    w = ir.Value(name="w", const_value=ir.tensor(weight, name="w"))
    node = ir.node("MatMul", [x, w])
    y = node.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape(["n", weight.shape[1]]), ir.TensorType(ir.DataType.FLOAT)
    return ir.Model(ir.Graph([x], [y], nodes=[node], initializers=[w], opset_imports={"": 23}, name="g"), ir_version=10)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's accounting of private memory")
def test_three_graphs_map_one_copy(tmp_path):
    weight = np.ones((4096, 4096), dtype=np.float32)
    assert weight.nbytes == WEIGHT_BYTES
    with WeightFile(tmp_path / "weights.bin") as weights:
        for name in "abc":
            built = graph(weight)
            weights.take(built)
            ir.save(built, tmp_path / f"{name}.onnx")
    ir.save(graph(np.ones((4, 4), dtype=np.float32)), tmp_path / "small.onnx")

    (tmp_path / "joint").mkdir()
    with JointWeights(tmp_path / "joint" / "weights.bin") as joint:
        for name in "abc":
            _save_packed(tmp_path / f"{name}.onnx", tmp_path / "own.onnx")
            (tmp_path / "joint" / f"{name}.onnx").write_bytes(joint.take(tmp_path / "own.onnx"))
            (tmp_path / "own.bin").unlink()
    assert joint.path.stat().st_size < 2.1 * WEIGHT_BYTES

    def grown(mode: str) -> int:
        command = [sys.executable, "-c", MEASURE, str(tmp_path), mode]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert grown("mapped") < WEIGHT_BYTES // 2
    assert grown("packed") > 2 * WEIGHT_BYTES
    assert grown("joint") < WEIGHT_BYTES // 2
