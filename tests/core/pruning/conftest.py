"""Opens a module as users get it: exported to ONNX and run by ONNX Runtime."""

from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

Runner = Callable[..., list[np.ndarray]]


@pytest.fixture(scope="session")
def as_onnx(tmp_path_factory) -> Callable[..., Runner]:
    """``as_onnx(module, example, dynamic_shapes)`` → a function from tensors to the graph's outputs."""

    def export(module: nn.Module, example: Sequence[Tensor], dynamic_shapes: Sequence[dict]) -> Runner:
        file = tmp_path_factory.mktemp("onnx") / "model.onnx"
        program = torch.onnx.export(
            module.eval(), tuple(example), dynamo=True, opset_version=23, dynamic_shapes=tuple(dynamic_shapes)
        )
        program.save(file)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_inputs()]

        def run(*inputs: Tensor) -> list[np.ndarray]:
            return session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})

        return run

    return export
