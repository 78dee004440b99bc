"""Tracing the modules of `wrappers` to the ONNX files of a bundle."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim

from toprl_engines.attention.tracing import function_proto, routed_attention, translation_table
from toprl_engines.graph.passes import (
    ELEMENT_OF_VECTOR,
    RMS_NORMALIZATION,
    ROTARY_EMBEDDING,
    ROW_BY_SCALAR,
    ROW_GATHER,
    check_passes,
    clean_names,
    drop_source_places,
    optimise,
    rename_sizes,
)
from toprl_engines.graph.signature import GraphSpec, Layout, TensorSpec, check_graph
from toprl_engines.graph.weights import DTYPES, WeightFile, in_precision
from toprl_engines.graph.wrappers import DecodeGraph, PrefillGraph, UnprunedPrefillGraph, VisionGraph
from toprl_export.engine import GRAPHS, BuildRequest
from toprl_export.errors import refusing
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.walk import layer_groups
from toprl_export.pruning.actor import StackedActors
from toprl_export.pruning.scorer import Scorer
from toprl_export.runtime.frontend import Frontend

OPSET = 23
"""The first with the operators `Attention`, `RMSNormalization` and `RotaryEmbedding`."""
WEIGHTS = "weights.bin"

_BATCH, _TEXT, _PAST, _VISUAL = 2, 12, 17, 22
"""Sizes of the examples that are traced; any others work."""


@dataclass(frozen=True)
class ExportJob:
    """What is exported into one directory.

    Attributes:
        adapter: the reference model.
        scorer: a baseline's, or the agents', stacked in the order of their index.
        stage_layers: the layers before which the stages stand, ascending.
        fixed_counts: keep counts to bake in, one per stage, or None to make them an input.
        precision: of the weights (fp32, fp16 or bf16); scorers and rotary frequencies stay in fp32.
    """

    adapter: LVLMAdapter
    scorer: Scorer
    stage_layers: tuple[int, ...]
    fixed_counts: tuple[int, ...] | None = None
    precision: str = "fp32"

    @classmethod
    def of(cls, request: BuildRequest) -> ExportJob:
        """The export of a build request's graphs."""
        plan = request.plan
        counts = plan.schedules[0].keep_counts if request.static_k else None
        return cls(request.adapter, request.scorer, plan.stage_layers, counts, request.precision)

    @property
    def layout(self) -> Layout:
        shape, fixed = self.adapter.shape, self.adapter.frontend.fixed
        return Layout(
            shape=shape,
            visual_tokens=None if fixed is None else len(fixed.rows),
            groups=layer_groups(self.stage_layers, shape.layers),
            first_stage_group=int(self.stage_layers[0] > 0),
            stages=len(self.stage_layers),
            fixed_counts=self.fixed_counts,
            agents=isinstance(self.scorer, StackedActors),
            saliency=self.scorer.needs.saliency,
            cache_dtype=DTYPES[self.precision],
            rotary_axes=self.adapter.frontend.rotary_axes,
        )


@dataclass(frozen=True)
class _Trace:
    """One graph to trace.

    Attributes:
        module: what is traced.
        examples: its inputs; lists are flattened, and None stands for an input that this graph does not have.
        spec: its signature.
        sizes: dynamic sizes by name.
        required: passes that must find something to do, and in how many places at least (`check_passes`).
        variadic: whether the module takes its inputs as ``*arrays``.
    """

    module: nn.Module
    examples: tuple[Any, ...]
    spec: GraphSpec
    sizes: dict[str, Any]
    required: Mapping[str, int] = field(default_factory=dict)
    variadic: bool = False


def export_graphs(job: ExportJob, directory: Path, names: Sequence[str] = GRAPHS) -> None:
    """Write graphs and their one weight file into ``directory``, each checked.

    Args:
        job: what is exported.
        directory: exists, and holds no weight file yet.
        names: which of `GRAPHS`; each becomes NAME.onnx.

    Raises:
        GraphError: a traced graph does not have its declared signature, or a pass finds nothing to do where it must.
    """
    job = replace(job, adapter=in_precision(job.adapter, job.precision))
    traces = {
        "vision": _trace_vision(job),
        "prefill": _trace_prefill(job),
        "decode": _trace_decode(job),
        "prefill_unpruned": _trace_unpruned(job),
    }
    with routed_attention(job.adapter.model), WeightFile(directory / WEIGHTS) as weights:
        for name in names:
            model = _to_onnx(name, traces[name])
            weights.take(model)
            ir.save(model, directory / f"{name}.onnx")
    for name in names:
        check_graph(directory / f"{name}.onnx", traces[name].spec)


def _to_onnx(name: str, trace: _Trace) -> ir.Model:
    model = _traced(trace)
    check_passes(name, optimise(model), trace.required)
    clean_names(model)
    drop_source_places(model)
    rename_sizes(model, _declared_names(model, trace.spec))
    return model


def _traced(trace: _Trace) -> ir.Model:
    """The graph as it was traced, with the function of the attention op."""
    remedy = "its text model does what a graph of fixed steps cannot hold: choose another checkpoint"
    with _quiet(), refusing("the model cannot be traced into a graph", remedy):
        program = torch.onnx.export(
            trace.module.eval(),
            trace.examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=trace.spec.input_names,
            output_names=trace.spec.output_names,
            dynamic_shapes=_dynamic_shapes(trace),
            custom_translation_table=translation_table(),
            optimize=False,
            verbose=False,
        )
    assert program is not None
    model: ir.Model = program.model
    function = ir.serde.deserialize_function(function_proto())
    model.functions[function.identifier()] = function
    return model


def _dynamic_shapes(trace: _Trace) -> tuple[Any, ...]:
    """The dynamic sizes of the signature's inputs, in the nesting of the examples."""
    specs = iter(trace.spec.inputs)

    def of_next() -> dict[int, Any]:
        sizes = next(specs).sizes
        return {axis: trace.sizes[size] for axis, size in enumerate(sizes) if isinstance(size, str)}

    def of(example: Any) -> Any:
        if example is None:
            return None
        return [of_next() for _ in example] if isinstance(example, list) else of_next()

    shapes = tuple(of(example) for example in trace.examples)
    return (shapes,) if trace.variadic else shapes


def _declared_names(model: ir.Model, spec: GraphSpec) -> dict[str, str]:
    """From the formulas that tracing gave to dynamic sizes to the signature's names."""
    names: dict[str, str] = {}
    values = [*model.graph.inputs, *model.graph.outputs]
    for value, tensor in zip(values, [*spec.inputs, *spec.outputs], strict=True):
        for traced, declared in zip(value.shape or (), tensor.sizes, strict=True):
            if isinstance(declared, str) and isinstance(traced, ir.SymbolicDim) and traced.value is not None:
                names.setdefault(str(traced.value), declared)
    return names


def vision_examples(frontend: Frontend) -> tuple[Tensor, ...]:
    """What the tower takes of two pictures, in the order of `Frontend.vision_axes`."""
    images = [frontend.example(Image.new("RGB", size)) for size in ((320, 240), (160, 360))]
    arrays = frontend.pictures(images).arrays
    return tuple(torch.from_numpy(arrays[name]) for name in frontend.vision_axes)


def vision_inputs(frontend: Frontend) -> tuple[TensorSpec, ...]:
    """The vision graph's inputs."""
    found = []
    for (name, axes), example in zip(frontend.vision_axes.items(), vision_examples(frontend), strict=True):
        sizes = (*axes, *example.shape[len(axes) :])
        found.append(TensorSpec(name, sizes, str(example.dtype).removeprefix("torch.")))
    return tuple(found)


def _trace_vision(job: ExportJob) -> _Trace:
    frontend, layout = job.adapter.frontend, job.layout
    examples, spec = vision_examples(frontend), layout.vision(vision_inputs(frontend))
    module = VisionGraph(job.adapter, layout.saliency)
    sizes = {axis: Dim(axis) for axes in frontend.vision_axes.values() for axis in axes}
    sizes |= {axis: of * Dim(f"{axis}_by_{of}") for axis, of in frontend.axis_multiples.items() if of > 1}
    # One tuple, for the module takes any number of arrays.
    return _Trace(module, examples, spec, sizes, variadic=True)


def _trace_prefill(job: ExportJob) -> _Trace:
    layout = job.layout
    module = PrefillGraph(job.adapter.decoder, job.scorer, job.stage_layers, job.fixed_counts)
    n = layout.visual_tokens or _VISUAL
    falling = torch.tensor([max(2, n >> stage + 1) for stage in range(layout.stages)])
    if layout.visual_tokens is None:
        falling = falling.repeat(_BATCH, 1)  # [b, T]
    steering = (
        None if layout.visual_tokens is not None else torch.arange(n).repeat(_BATCH, 1),
        torch.zeros(_BATCH, n) if layout.saliency else None,
        torch.tensor(0) if layout.agents else None,
        falling if job.fixed_counts is None else None,
    )
    # The row gathers come first, for without them the rotary embedding is not found either.
    required = {ROW_GATHER: layout.stages, **_required_of_decoder(layout)}
    if layout.agents:
        required[ROW_BY_SCALAR] = layout.stages
    # A vector of one count needs no picking, and of the rows' counts it is the largest that is taken.
    if job.fixed_counts is None and layout.stages > 1 and layout.visual_tokens is not None:
        required[ELEMENT_OF_VECTOR] = layout.stages
    return _Trace(module, (*_example_tokens(layout), *steering), layout.prefill(), _prompt_sizes(layout), required)


def _trace_unpruned(job: ExportJob) -> _Trace:
    layout = job.layout
    module = UnprunedPrefillGraph(job.adapter.decoder)
    rows = () if layout.visual_tokens is not None else (torch.arange(_VISUAL).repeat(_BATCH, 1),)
    required, examples = _required_of_decoder(layout), (*_example_tokens(layout), *rows)
    return _Trace(module, examples, layout.prefill_unpruned(), _prompt_sizes(layout), required)


def _trace_decode(job: ExportJob) -> _Trace:
    layout, shape = job.layout, job.layout.shape
    one = torch.zeros(_BATCH, 1, dtype=torch.int64)
    lengths = [_PAST + 3 * group for group in layout.groups]
    dtype: torch.dtype = getattr(torch, layout.cache_dtype)
    caches = [torch.zeros(_BATCH, shape.kv_heads, length, shape.head_dim, dtype=dtype) for length in lengths]
    pairs = [cache.clone() for cache in caches for _ in ("key", "value")]
    groups = range(max(layout.groups) + 1)
    masks = [torch.ones(_BATCH, _PAST + 3 * group + 1, dtype=torch.bool) for group in groups]
    sizes: dict[str, Any] = {"batch": Dim("batch")}
    for group in groups:
        sizes[f"past_{group}"] = Dim(f"past_{group}")
        sizes[f"cached_{group}"] = sizes[f"past_{group}"] + 1
    module = DecodeGraph(job.adapter.decoder, job.stage_layers)
    return _Trace(module, (one, one.clone(), pairs, masks), layout.decode(), sizes, _required_of_decoder(layout))


def _required_of_decoder(layout: Layout) -> dict[str, int]:
    """Every layer normalises twice and turns its queries and its keys; a last norm stands before the head."""
    return {RMS_NORMALIZATION: 2 * layout.shape.layers + 1, ROTARY_EMBEDDING: 2 * layout.shape.layers}


def _example_tokens(layout: Layout) -> tuple[Tensor, ...]:
    """Inputs of a prefill, in the order of its signature; the image first."""
    n = layout.visual_tokens or _VISUAL
    places = torch.arange(n + _TEXT).repeat(_BATCH, 1)  # [b, s]
    ids = torch.zeros_like(places)
    positions = places if layout.rotary_axes == 1 else places.repeat(layout.rotary_axes, 1, 1)
    visual = torch.zeros(*((_VISUAL + 3,) if layout.visual_tokens is None else (_BATCH, n)), layout.shape.hidden)
    return ids, visual, torch.ones_like(ids), positions, places[:, :n].clone(), places[:, n:].clone()


def _prompt_sizes(layout: Layout) -> dict[str, Any]:
    text = Dim("text")
    if layout.visual_tokens is None:
        # The tracer finds out by itself how the length comes of two sizes.
        return {"batch": Dim("batch"), "text": text, "visual": Dim("visual"), "rows": Dim("rows"), "sequence": Dim.AUTO}
    return {"batch": Dim("batch"), "text": text, "sequence": text + layout.visual_tokens}


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about its own internals, which a user can do nothing about."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logger.setLevel(level)
