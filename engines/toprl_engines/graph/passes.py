"""Rewriting a traced graph: fused normalisation and rotary embedding, no small, repeated or unused nodes.

Small nodes cost a runtime more to start than to run. Tracing writes sizes that are known only at run time as arithmetic
on shapes, and integers that an input holds as scalars of several forms. A stage of pruning is small, so these made up
half of its nodes.

Every pass says what it changed (`PassResult`). Where a graph must have what a pass is for, a pass that finds nothing
fails the build (`check_passes`): the graph would compute the same, only more slowly, and nobody would notice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnxscript import optimizer
from onnxscript.rewriter.onnx_fusions import fuse
from onnxscript.rewriter.pattern import MatchResult, RewriteRule, RewriteRuleClassBase, RewriteRuleSet

from toprl_engines.graph.signature import UnfusedError

RMS_NORMALIZATION = "rms-normalization"
ROTARY_EMBEDDING = "rotary-embedding"
ROW_GATHER = "row-gather"
CONSTANT_RESHAPE = "constant-reshape"
ROW_BY_SCALAR = "row-by-scalar"
ELEMENT_OF_VECTOR = "element-of-vector"
"""Names of the passes."""
_SOURCE_PLACES = (
    "namespace",
    "pkg.torch.onnx.class_hierarchy",
    "pkg.torch.onnx.fx_node",
    "pkg.torch.onnx.stack_trace",
)


@dataclass(frozen=True)
class PassResult:
    """What one pass did to one graph.

    Attributes:
        name: of the pass.
        matched: places of the form that it is for.
        changed: places that it rewrote; the others were not sure to stay the same.
    """

    name: str
    matched: int
    changed: int


def check_passes(graph: str, results: Iterable[PassResult], required: Mapping[str, int]) -> None:
    """Check that every required pass has changed enough.

    Args:
        graph: its name, for the message.
        results: of the passes that were run on it.
        required: names of passes, and the fewest places that each must have rewritten.

    Raises:
        GraphError: one has rewritten fewer.
    """
    found = {result.name: result for result in results}
    for name, expected in required.items():
        result = found.get(name, PassResult(name, 0, 0))
        if result.changed < expected:
            raise UnfusedError(
                f"{graph}: the pass {name} matched {result.matched} places and rewrote {result.changed}, expected at "
                f"least {expected}, so the graph would run more slowly than it should: choose a model whose layers are "
                "like Llama's, or the versions of torch, transformers and onnxscript that this release was tested with"
            )


def optimise(model: ir.Model) -> tuple[PassResult, ...]:
    """Fold constants, fuse, simplify, and drop what is repeated or unused; functions stay. In place.

    Returns:
        What each pass changed.
    """
    # Not inlined: the attention op must stay one node, which engines with a kernel of their own take.
    optimizer.optimize_ir(model, inline=False)
    fused = fuse(model)
    simplified = simplify(model)
    # After the gathers, through which it looks for the origin of the tables.
    (rotary,) = _apply(model, RotaryFusion())
    # Once more, for rewrites leave unused nodes and repeated subexpressions behind.
    optimizer.optimize_ir(model, inline=False)
    # onnxscript fuses the rotary embedding itself where nothing is gathered, as in decode; it counts only what it
    # rewrote, so matched and changed are the same for its fusions.
    norms, turned = fused["RMSNormalization"], fused["RotaryEmbedding"]
    return (
        PassResult(RMS_NORMALIZATION, norms, norms),
        PassResult(ROTARY_EMBEDDING, turned + rotary.matched, turned + rotary.changed),
        *simplified,
    )


def simplify(model: ir.Model) -> tuple[PassResult, ...]:
    """Leave out small nodes. In place; what becomes unused stays."""
    return _apply(model, RowGather(), ConstantReshape(), RowByScalar(), ElementOfVector())


class CountingRule(RewriteRuleClassBase, ABC):
    """A rewrite that counts what it matches.

    Args:
        name: of the pass.
        remove_nodes: remove the matched nodes at once, which requires that nothing else uses the inner ones; otherwise
            they go once nothing uses them.
    """

    def __init__(self, name: str, remove_nodes: bool = False) -> None:
        super().__init__(name, remove_nodes=remove_nodes)
        self._matched = 0
        self._changed = 0

    @property
    def result(self) -> PassResult:
        """What it has done so far."""
        return PassResult(str(self.name), self._matched, self._changed)

    @abstractmethod
    def replacement(self, *_: Any, **matched: Any) -> Any:
        """What takes the place of a match, given onnxscript's builder and the matched values; None leaves it."""

    def rewrite(self, op: Any, *_: Any, **matched: Any) -> Any:
        """Called by onnxscript for every match that passes the check."""
        new = self.replacement(op, **matched)
        self._matched += 1
        self._changed += new is not None
        return new


def _apply(model: ir.Model, *passes: CountingRule) -> tuple[PassResult, ...]:
    rules = [
        RewriteRule(one.pattern, one.rewrite, one.check, name=one.name, remove_nodes=one.remove_nodes) for one in passes
    ]
    RewriteRuleSet(rules).apply_to_model(model)
    return tuple(one.result for one in passes)


class RotaryFusion(CountingRule):
    """``x·cos + rotate_half(x)·sin`` → opset-23 `RotaryEmbedding`, also where the tables were gathered by kept token.

    The operator takes tables of half the width, so it applies only where both halves are the same by construction.
    """

    def __init__(self) -> None:
        super().__init__(ROTARY_EMBEDDING)

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

    def replacement(self, op: Any, x: ir.Value, cos: ir.Value, sin: ir.Value, **_: Any) -> Any:
        """None where the halves may differ."""
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


class RowGather(CountingRule):
    """`GatherElements` whose index is the same for all elements of a token → `GatherND`, which copies whole rows."""

    def __init__(self) -> None:
        super().__init__(ROW_GATHER)

    def pattern(self, op: Any, x: Any, index: Any, sizes: Any) -> Any:
        """What `toprl_export.pruning.select.gather_tokens` traces to; ``index`` is ``[b, k, 1]``."""
        return op.GatherElements(x, op.Expand(index, sizes, _outputs=["spread"]), axis=1)

    def check(self, op: Any, x: ir.Value, index: ir.Value, spread: ir.Value, **_: Any) -> MatchResult:
        """The index picks one row of ``x [b, s, d]`` at a time, in every sample of the batch and at its full width."""
        result = MatchResult()
        if x.shape is None or index.shape is None or spread.shape is None:
            return result.fail("sizes are unknown")
        if (len(x.shape), len(index.shape)) != (3, 3):
            return result.fail("not [b, s, d]")
        if index.shape[2] != 1 or not same_size(spread.shape[2], x.shape[2]):
            return result.fail("not one index for a whole row")
        if not same_size(index.shape[0], x.shape[0]) or not same_size(spread.shape[0], x.shape[0]):
            return result.fail("not every sample of the batch")
        return result

    def replacement(self, op: Any, x: ir.Value, index: ir.Value, **_: Any) -> Any:
        """The innermost axis of the index names one axis of ``x``, which is all that `GatherND` wants."""
        return op.GatherND(x, index, batch_dims=1)


class ConstantReshape(CountingRule):
    """A `Reshape` to sizes that are fixed, or those of the same axis before → one to a constant."""

    def __init__(self) -> None:
        super().__init__(CONSTANT_RESHAPE, remove_nodes=True)

    def pattern(self, op: Any, data: Any, shape: Any) -> Any:
        """Any `Reshape`."""
        return op.Reshape(data, shape, _outputs=["reshaped"])

    def check(self, op: Any, data: ir.Value, shape: ir.Value, reshaped: ir.Value) -> MatchResult:
        """At most one size is left to be inferred."""
        result = MatchResult()
        if ir.convenience.get_const_tensor(shape) is not None:
            return result.fail("constant already")
        # Kept for `replacement`, which is called for the same match next.
        self._sizes = constant_sizes(data.shape, reshaped.shape)
        # ONNX infers one size of a `Reshape` at most.
        return result if self._sizes.count(-1) < 2 else result.fail("several sizes change")

    def replacement(self, op: Any, data: ir.Value, **_: Any) -> Any:
        """Zero copies a size."""
        return op.Reshape(data, op.Constant(value_ints=self._sizes), allowzero=0)


def constant_sizes(before: ir.Shape | None, after: ir.Shape | None) -> list[int]:
    """The operand of a `Reshape`: 0 for a size that stays, -1 for one to be inferred; all -1 where nothing is known."""
    if before is None or after is None:
        return [-1, -1]
    stays = [axis < len(before) and same_size(before[axis], size) for axis, size in enumerate(after)]
    return [size if isinstance(size, int) else 0 if stay else -1 for size, stay in zip(after, stays, strict=True)]


def same_size(left: Any, right: Any) -> bool:
    """Whether two sizes are known to be equal: integers, or symbols of one name."""
    return left == right and (isinstance(left, int) or left.value is not None)


class RowByScalar(CountingRule):
    """A row gathered by an index of one element, its axis squeezed → gathered by the scalar behind the index."""

    def __init__(self) -> None:
        super().__init__(ROW_BY_SCALAR)

    def pattern(self, op: Any, x: Any, index: Any, axes: Any) -> Any:
        """What ``x.index_select(0, index.reshape(1)).squeeze(0)`` traces to."""
        return op.Squeeze(op.Gather(x, index, axis=0), axes)

    def check(self, op: Any, index: ir.Value, axes: ir.Value, **_: Any) -> MatchResult:
        """The index is a reshaped scalar, and its axis is the one that goes."""
        result = MatchResult()
        self._scalar = scalar_behind(index)
        return result if self._scalar is not None and constant(axes) == [0] else result.fail("not one row")

    def replacement(self, op: Any, x: ir.Value, **_: Any) -> Any:
        """`Gather` drops the axis itself."""
        return op.Gather(x, self._scalar, axis=0)


def scalar_behind(value: ir.Value | None) -> ir.Value | None:
    """The scalar that ``value`` holds in another shape, if there is one."""
    while value is not None and value.shape is not None and len(value.shape) > 0:
        node = value.producer()
        value = node.inputs[0] if node is not None and node.op_type in ("Reshape", "Unsqueeze") else None
    return value if value is not None and value.shape is not None else None


class ElementOfVector(CountingRule):
    """An element of a vector that is reshaped through scalars to ``[1]`` → gathered as ``[1]``."""

    def __init__(self) -> None:
        super().__init__(ELEMENT_OF_VECTOR)

    def pattern(self, op: Any, scalar: Any, form: Any) -> Any:
        """Any `Reshape`."""
        return op.Reshape(scalar, form)

    def check(self, op: Any, scalar: ir.Value, form: ir.Value) -> MatchResult:
        """``scalar`` is, but for its shape, an element gathered from a vector at a fixed place."""
        result = MatchResult()
        gather = gather_behind(scalar)
        place = None if gather is None else constant(gather.inputs[1])
        if constant(form) not in ([-1], [1]) or gather is None or place is None or len(place) != 1:
            return result.fail("not one element of a vector")
        self._vector, self._place = gather.inputs[0], place
        return result

    def replacement(self, op: Any, **_: Any) -> Any:
        """The result of `Gather` has the shape of the index."""
        return op.Gather(self._vector, op.Constant(value_ints=self._place), axis=0)


def gather_behind(value: ir.Value) -> ir.Node | None:
    """The `Gather` of one element of a vector that ``value`` holds in any shape, if there is one."""
    node = value.producer()
    if node is None or node.op_type not in ("Gather", "Reshape", "Squeeze", "Unsqueeze"):
        return None
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    if source.shape.is_static() and source.shape.numpy() in ((), (1,)):
        return gather_behind(source)
    return node if node.op_type == "Gather" and len(source.shape) == 1 else None


def constant(value: ir.Value | None) -> list[int] | None:
    """The integers that a value is known to hold, or None."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    # Axes and shapes are short; a larger constant is a weight, which need not be read.
    return None if tensor is None or tensor.size > 16 else [int(number) for number in tensor.numpy().reshape(-1)]


def rename_sizes(model: ir.Model, names: Mapping[str, str]) -> None:
    """Give dynamic sizes that tracing named by formulas ("text + u0") their names. In place."""
    for value in _values(model):
        if value.shape is None or value.shape.is_static():
            continue
        renamed = [names.get(str(getattr(size, "value", size)), None) for size in value.shape]
        value.shape = ir.Shape([size if new is None else new for size, new in zip(value.shape, renamed, strict=True)])


def drop_source_places(model: ir.Model) -> None:
    """Forget where in Python's source every node came from. In place.

    Tracing notes stack traces with absolute paths and line numbers, so that the same build on another machine, or after
    a comment was added, would have other bytes, and a published bundle would tell its builder's directories.
    """
    for node in model.graph.all_nodes():
        for name in _SOURCE_PLACES:
            node.metadata_props.pop(name, None)


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
