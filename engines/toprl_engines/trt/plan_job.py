"""A build request as TensorRT sees it: exported how, for which sizes, with which settings."""

from __future__ import annotations

from dataclasses import dataclass

from toprl_engines.graph.export import ExportJob
from toprl_engines.graph.signature import GraphSpec
from toprl_engines.trt.binding import Binding
from toprl_engines.trt.profiles import ProfileLimits, graph_profiles
from toprl_engines.trt.settings import BuilderSettings
from toprl_export.build_report import InputRange
from toprl_export.engine import BuildRequest
from toprl_export.tensorrt_options import TensorRTOptions


@dataclass(frozen=True)
class PlanJob:
    """What follows from a request and its complete options; nothing is computed yet.

    Attributes:
        request: as it was made.
        options: complete (`TensorRTEngine.resolve`).
        binding: TensorRT.
    """

    request: BuildRequest
    options: TensorRTOptions
    binding: Binding

    @property
    def attention(self) -> str:
        """ "plugin" or "native"."""
        return self.options.attention or "native"

    @property
    def export(self) -> ExportJob:
        """What is traced to ONNX."""
        request = self.request
        counts = request.plan.schedules[0].keep_counts if request.static_k else None
        return ExportJob(request.adapter, request.scorer, request.plan.stage_layers, counts, request.precision)

    @property
    def settings(self) -> BuilderSettings:
        """What the builder is told."""
        return BuilderSettings.of(self.options, self.binding)

    @property
    def keeps_graphs(self) -> bool:
        """Whether the bundle needs the graphs and their weights: to fill plans with them."""
        return self.options.weight_stripped or self.options.refittable

    def profiles(self) -> dict[str, tuple[InputRange, ...]]:
        """The range of every varying input, by graph.

        Raises:
            UserError: the model has no room for text beside its visual tokens.
        """
        layout, adapter = self.export.layout, self.request.adapter
        specs: dict[str, GraphSpec] = {
            "vision": layout.vision(adapter.image_processor.output_size),
            "prefill": layout.prefill(),
            "decode": layout.decode(),
            "prefill_unpruned": layout.prefill_unpruned(),
        }
        options = self.options
        limits = ProfileLimits(options.max_batch, options.max_text, options.max_new_tokens)
        max_length: int = adapter.model.config.get_text_config().max_position_embeddings
        return graph_profiles(specs, layout, self.request.plan, limits, max_length)
