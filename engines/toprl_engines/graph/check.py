"""Every exported graph must be valid ONNX and have exactly the declared inputs, outputs and dynamic sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import onnx

from toprl_engines.graph.signature import GraphSpec, Size, TensorSpec
from toprl_export.errors import ToprlError


class GraphError(ToprlError):
    """An exported graph is not what was asked for: a bug of the exporter, not of the user."""


def check_graph(path: Path, spec: GraphSpec) -> None:
    """Run the ONNX checker with full shape inference and compare the file with its signature.

    A size that tracing fixed silently (a batch of 2 for ever) is an error here.

    Raises:
        GraphError: names, types, sizes or dynamic sizes differ from ``spec``, or a value name is repeated or starts
            with an underscore.
        onnx.checker.ValidationError: the file is not valid ONNX.
    """
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path), load_external_data=False)
    _check_tensors(path, "input", model.graph.input, spec.inputs)
    _check_tensors(path, "output", model.graph.output, spec.outputs)
    produced = [name for node in model.graph.node for name in node.output if name]
    given = [value.name for value in (*model.graph.input, *model.graph.initializer)]
    names = Counter([*given, *produced])
    unfit = [name for name, count in names.items() if count > 1 or name.startswith("_")]
    if unfit:
        raise GraphError(f"{path.name}: value names repeated or with a leading underscore: {', '.join(unfit)}")


def _check_tensors(
    path: Path, kind: str, found: Iterable[onnx.ValueInfoProto], expected: tuple[TensorSpec, ...]
) -> None:
    values = list(found)
    actual = {value.name: sizes_of(value) for value in values}
    wanted = {tensor.name: tensor.sizes for tensor in expected}
    if list(actual) != list(wanted):
        raise GraphError(f"{path.name}: {kind}s are {', '.join(actual)}, expected {', '.join(wanted)}")
    for name, sizes in wanted.items():
        if actual[name] != sizes:
            raise GraphError(f"{path.name}: {kind} {name} has sizes {list(actual[name])}, expected {list(sizes)}")
    for value, tensor in zip(values, expected, strict=True):
        if dtype_of(value) != tensor.dtype:
            raise GraphError(f"{path.name}: {kind} {value.name} is {dtype_of(value)}, expected {tensor.dtype}")


def sizes_of(value: onnx.ValueInfoProto) -> tuple[Size, ...]:
    """Fixed sizes as numbers, dynamic ones by name ("?" where nameless)."""
    dimensions = value.type.tensor_type.shape.dim
    return tuple(int(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in dimensions)


def dtype_of(value: onnx.ValueInfoProto) -> str:
    """Its type by the name that torch and NumPy share."""
    name: str = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
    return name
