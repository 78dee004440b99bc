"""Rewriting a traced graph: fused normalisation and rotary embedding, no repeated or unused work, clean names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from onnxscript import optimizer
from onnxscript.rewriter.onnx_fusions import fuse
from onnxscript.rewriter.pattern import MatchResult, RewriteRuleClassBase, RewriteRuleSet

from toprl_engines.graph.simplify import constant, simplify


class RotaryFusion(RewriteRuleClassBase):
    """``x·cos + rotate_half(x)·sin`` → opset-23 `RotaryEmbedding`, also where the tables were gathered by kept token.

    The operator takes tables of half the width, so it applies only where both halves are the same by construction.
    """

    def __init__(self) -> None:
        super().__init__("RotaryFusion", remove_nodes=False)

    def pattern(
        self, op: Any, x: Any, cos: Any, sin: Any, axis: Any, half: Any, starts: Any, last: Any, end: Any, step: Any
    ) -> Any:
        """The form that Hugging Face decoders trace to."""
        left = op.Slice(x, starts, half, last, step)
        right = op.Slice(x, half, end, last, step)
        rotated = op.Concat(op.Neg(right), left, axis=-1)
        return x * op.Unsqueeze(cos, axis) + rotated * op.Unsqueeze(sin, axis)

    def check(self, op: Any, *_: Any, **matched: ir.Value) -> MatchResult:
        """The halves of ``x [b, heads, s, head_dim]`` are swapped, and the tables have one row for all heads."""
        result = MatchResult()
        sizes = matched["x"].shape
        if sizes is None or len(sizes) != 4 or not isinstance(sizes[1], int) or not isinstance(sizes[3], int):
            return result.fail("not [b, heads, s, head_dim] with fixed heads")
        found = [constant(matched[name]) for name in ("starts", "half", "last", "step", "axis")]
        if found != [[0], [sizes[3] // 2], [3], [1], [1]]:
            return result.fail("not the two halves")
        return result

    def rewrite(self, op: Any, x: ir.Value, cos: ir.Value, sin: ir.Value, **_: Any) -> Any:
        """None, which leaves the nodes as they are, where the halves may differ."""
        half_cos, half_sin = first_half(op, cos), first_half(op, sin)
        if half_cos is None or half_sin is None or x.shape is None:
            return None
        return op.RotaryEmbedding(x, half_cos, half_sin, interleaved=0, num_heads=x.shape[1])


def first_half(op: Any, value: ir.Value) -> ir.Value | None:
    """The first half of ``value`` along its last axis, computed at half the width from where the halves were joined.

    None unless the two halves are provably equal.
    """
    node = value.producer()
    if node is None:
        return None
    inputs = list(node.inputs)
    if node.op_type == "Concat" and len(inputs) == 2 and inputs[0] is inputs[1] and _joins_last_axis(node, value):
        return inputs[0]
    source = None if inputs[0] is None else first_half(op, inputs[0])
    if source is None:
        return None
    if node.op_type in ("Cast", "Cos", "Sin"):
        return _call(op, node, [source])
    if node.op_type == "GatherND" and _gathers_rows(node):
        return _call(op, node, [source, inputs[1]])
    return None


def _gathers_rows(node: ir.Node) -> bool:
    """Whether it takes whole rows of ``[b, s, d]``, as `RowGather` writes it."""
    data, index = (value.shape if value is not None else None for value in node.inputs)
    whole = data is not None and index is not None and len(data) == len(index) == 3 and index[2] == 1
    return whole and node.attributes.get_int("batch_dims", 0) == 1


def _call(op: Any, node: ir.Node, inputs: list[Any]) -> ir.Value:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    result: ir.Value = getattr(op, node.op_type)(*inputs, **attributes)
    return result


def _joins_last_axis(node: ir.Node, value: ir.Value) -> bool:
    axis = node.attributes.get_int("axis")
    return axis == -1 or (value.shape is not None and axis == len(value.shape) - 1)


def optimise(model: ir.Model) -> None:
    """Fold constants, fuse, simplify, and drop what is repeated or unused; functions stay. In place."""
    optimizer.optimize_ir(model, inline=False)
    fuse(model)
    simplify(model)
    rotary_rule = RotaryFusion.rule()  # type: ignore[no-untyped-call]  # onnxscript leaves it untyped
    RewriteRuleSet([rotary_rule]).apply_to_model(model)
    optimizer.optimize_ir(model, inline=False)


def rename_sizes(model: ir.Model, names: Mapping[str, str]) -> None:
    """Give dynamic sizes that tracing named by formulas ("text + u0") their names. In place."""
    for value in _values(model):
        if value.shape is None or value.shape.is_static():
            continue
        renamed = [names.get(str(getattr(size, "value", size)), None) for size in value.shape]
        value.shape = ir.Shape([size if new is None else new for size, new in zip(value.shape, renamed, strict=True)])


def clean_names(model: ir.Model) -> None:
    """Names with a leading underscore break some compilers: strip it, and keep all names distinct. In place."""
    taken = {value.name for value in _values(model)}
    for value in _values(model):
        if value.name is None or not value.name.startswith("_"):
            continue
        wanted = value.name.lstrip("_")
        name, suffix = wanted, 1
        while name in taken:
            name, suffix = f"{wanted}_{suffix}", suffix + 1
        taken.add(name)
        value.name = name


def _values(model: ir.Model) -> list[ir.Value]:
    graph = model.graph
    produced = [output for node in graph for output in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *produced]
