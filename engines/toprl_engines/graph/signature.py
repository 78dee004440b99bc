"""What goes in and out of every graph of a bundle: names and sizes, fixed or dynamic."""

from __future__ import annotations

from dataclasses import dataclass

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
        visual_tokens: n.
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
    visual_tokens: int
    groups: tuple[int, ...]
    first_stage_group: int
    stages: int
    fixed_counts: tuple[int, ...] | None = None
    agents: bool = True
    saliency: bool = False
    cache_dtype: str = "float32"

    def vision(self, pixels: tuple[int, int]) -> GraphSpec:
        """``pixels``: height and width of the input image."""
        visual = TensorSpec("visual", ("batch", self.visual_tokens, self.shape.hidden))
        return GraphSpec((TensorSpec("pixel_values", ("batch", 3, *pixels)),), (visual, *self._saliency()))

    def prefill(self) -> GraphSpec:
        """Prompt and image to logits, caches, kept indices and masks."""
        steering = [*self._saliency()]
        if self.agents:
            steering.append(TensorSpec("agent_index", (), "int64"))
        if self.fixed_counts is None:
            steering.append(TensorSpec("keep_counts", (self.stages,), "int64"))
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
    def _group_count(self) -> int:
        return max(self.groups) + 1

    def _kept(self, stage: int) -> Size:
        return f"kept_{stage}" if self.fixed_counts is None else self.fixed_counts[stage]

    def _tokens(self, group: int) -> Size:
        return "sequence" if group < self.first_stage_group else f"tokens_{group}"

    def _saliency(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("saliency", ("batch", self.visual_tokens)),) if self.saliency else ()

    def _tokens_in(self) -> tuple[TensorSpec, ...]:
        n = self.visual_tokens
        return (
            TensorSpec("input_ids", ("batch", "sequence"), "int64"),
            TensorSpec("visual", ("batch", n, self.shape.hidden)),
            TensorSpec("attention_mask", ("batch", "sequence"), "int64"),
            TensorSpec("position_ids", ("batch", "sequence"), "int64"),
            TensorSpec("visual_index", ("batch", n), "int64"),
            TensorSpec("text_index", ("batch", "text"), "int64"),
        )

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
