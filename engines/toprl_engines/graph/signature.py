"""Inputs and outputs of every graph of a bundle, and the check that an exported file has exactly those."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx

from toprl_export.errors import ToprlError, UserError
from toprl_export.models.shape import DecoderShape

Size = int | str
"""A fixed size, or the name of a dynamic one."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output; ``dtype`` by the name that torch and NumPy share."""

    name: str
    sizes: tuple[Size, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class GraphSpec:
    """All inputs and outputs of a graph, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def input_names(self) -> list[str]:
        return [tensor.name for tensor in self.inputs]

    @property
    def output_names(self) -> list[str]:
        return [tensor.name for tensor in self.outputs]


@dataclass(frozen=True)
class Layout:
    """The sizes that fix the signatures of one bundle's graphs.

    Attributes:
        shape: of the decoder.
        visual_tokens: n; None where it differs from picture to picture: visual embeddings are rows then, of which each
            prompt names its own, and keep counts are each prompt's own.
        rotary_axes: p, how many position ids a token has.
        groups: per layer, which mask it uses (`toprl_export.models.walk.layer_groups`).
        first_stage_group: the group that the first stage opens: 0 when it stands before layer 0, else 1.
        stages: T, the number of stages.
        fixed_counts: keep counts baked into the prefill graph, or None where they are an input.
        agents: whether an input picks one of several agents; a baseline has none.
        saliency: whether the vision graph gives each patch's saliency to the prefill graph.
        cache_dtype: the type that the graphs compute in. Only caches have it: images, visual embeddings, saliency and
            logits cross the host in float32.
    """

    shape: DecoderShape
    visual_tokens: int | None
    groups: tuple[int, ...]
    first_stage_group: int
    stages: int
    fixed_counts: tuple[int, ...] | None = None
    agents: bool = True
    saliency: bool = False
    cache_dtype: str = "float32"
    rotary_axes: int = 1

    def vision(self, inputs: tuple[TensorSpec, ...]) -> GraphSpec:
        """``inputs``: what the family's tower takes."""
        return GraphSpec(inputs, (self._visual(), *self._saliency()))

    def prefill(self) -> GraphSpec:
        """Prompt and image to logits, caches, kept indices and masks."""
        steering = [*self._saliency()]
        if self.agents:
            steering.append(TensorSpec("agent_index", (), "int64"))
        if self.fixed_counts is None:
            each: tuple[Size, ...] = ("batch",) if self.visual_tokens is None else ()
            steering.append(TensorSpec("keep_counts", (*each, self.stages), "int64"))
        lengths = [self._tokens(group) for group in self.groups]
        kept = [TensorSpec(f"kept_{stage}", ("batch", self._kept(stage)), "int64") for stage in range(self.stages)]
        masks = [_mask(group, self._tokens(group)) for group in range(self._group_count)]
        return GraphSpec(
            (*self._tokens_in(), *steering), (self._logits(), *self._caches(("key", "value"), lengths), *kept, *masks)
        )

    def prefill_unpruned(self) -> GraphSpec:
        """The same without stages."""
        lengths: list[Size] = ["sequence"] * self.shape.layers
        caches = self._caches(("key", "value"), lengths)
        return GraphSpec(self._tokens_in(), (self._logits(), *caches, _mask(0, "sequence")))

    def decode(self) -> GraphSpec:
        """One token and the caches to logits and the grown caches."""
        past: list[Size] = [f"past_{group}" for group in self.groups]
        grown: list[Size] = [f"cached_{group}" for group in self.groups]
        masks = [_mask(group, f"cached_{group}") for group in range(self._group_count)]
        token = TensorSpec("token", ("batch", 1), "int64")
        position = TensorSpec("position", ("batch", 1), "int64")
        return GraphSpec(
            (token, position, *self._caches(("key", "value"), past), *masks),
            (self._logits(), *self._caches(("new_key", "new_value"), grown)),
        )

    @property
    def fixed_tokens(self) -> int:
        """n.

        Raises:
            UserError: it differs from picture to picture.
        """
        if self.visual_tokens is None:
            raise UserError("profiles are made for one number of visual tokens, but this model's pictures differ in it")
        return self.visual_tokens

    @property
    def _group_count(self) -> int:
        return max(self.groups) + 1

    def _kept(self, stage: int) -> Size:
        return f"kept_{stage}" if self.fixed_counts is None else self.fixed_counts[stage]

    def _tokens(self, group: int) -> Size:
        return "sequence" if group < self.first_stage_group else f"tokens_{group}"

    def _visual(self) -> TensorSpec:
        sizes: tuple[Size, ...] = ("rows",) if self.visual_tokens is None else ("batch", self.visual_tokens)
        return TensorSpec("visual", (*sizes, self.shape.hidden))

    def _saliency(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("saliency", self._visual().sizes[:-1]),) if self.saliency else ()

    def _tokens_in(self) -> tuple[TensorSpec, ...]:
        n: Size = "visual" if self.visual_tokens is None else self.visual_tokens
        axes: tuple[Size, ...] = () if self.rotary_axes == 1 else (self.rotary_axes,)
        tokens = (
            TensorSpec("input_ids", ("batch", "sequence"), "int64"),
            self._visual(),
            TensorSpec("attention_mask", ("batch", "sequence"), "int64"),
            TensorSpec("position_ids", (*axes, "batch", "sequence"), "int64"),
            TensorSpec("visual_index", ("batch", n), "int64"),
            TensorSpec("text_index", ("batch", "text"), "int64"),
        )
        rows = (TensorSpec("visual_rows", ("batch", n), "int64"),) if self.visual_tokens is None else ()
        return tokens + rows

    def _logits(self) -> TensorSpec:
        return TensorSpec("logits", ("batch", self.shape.vocabulary))

    def _caches(self, names: tuple[str, str], lengths: list[Size]) -> list[TensorSpec]:
        heads, width = self.shape.kv_heads, self.shape.head_dim
        return [
            TensorSpec(f"{name}_{layer}", ("batch", heads, length, width), self.cache_dtype)
            for layer, length in enumerate(lengths)
            for name in names
        ]


def _mask(group: int, length: Size) -> TensorSpec:
    return TensorSpec(f"mask_{group}", ("batch", length), "bool")


class GraphError(ToprlError):
    """An exported graph is not what it was declared to be: a bug of the exporter, not the user's mistake."""


class UnfusedError(GraphError, UserError):
    """A pass did not find what it must fuse: the model's layers are of another kind, or its libraries' versions are."""


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
