"""A build request as TensorRT sees it, and the files of a bundle that are made of it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from toprl_engines.graph.export import WEIGHTS, ExportJob
from toprl_engines.graph.signature import GraphSpec
from toprl_engines.trt.binding import Binding
from toprl_engines.trt.build.builder import BuilderSettings, TimingCache
from toprl_engines.trt.build.profiles import ProfileLimits, graph_profiles
from toprl_engines.trt.build_report import InputRange
from toprl_engines.trt.options import TensorRTOptions
from toprl_engines.trt.passes.copies import SUFFIX
from toprl_export.bundle import load_bundle
from toprl_export.engine import GRAPHS, BuildRequest
from toprl_export.errors import UserError


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


GRAPH_FOLDER = "graphs"
TIMING_CACHE = "timing.cache"
TIMING_ROLE = "timing_cache"
Files = list[tuple[str, str]]
"""Role and path of each, relative to the bundle."""


def graph_role(name: str) -> str:
    """The role of a canonical graph that a bundle keeps."""
    return f"graph_{name}"


def copy_role(name: str) -> str:
    """The role of TensorRT's copy of a graph, from which a plan's weights are filled in."""
    return f"refit_{name}"


def keep_graphs(directory: Path, kept: bool) -> Files:
    """List the graphs that were exported into ``directory``, or remove them and list none."""
    if not kept:
        shutil.rmtree(directory / GRAPH_FOLDER)
        return []
    graphs = [(graph_role(name), f"{GRAPH_FOLDER}/{name}.onnx") for name in GRAPHS]
    copies = [(copy_role(name), f"{GRAPH_FOLDER}/{name}{SUFFIX}") for name in GRAPHS]
    return [*graphs, *copies, ("weights", f"{GRAPH_FOLDER}/{WEIGHTS}")]


def copy_plugin(library: Path, directory: Path, name: str) -> Files:
    """Put the plugin's library into ``directory``, from where the plans will load it."""
    shutil.copyfile(library, directory / name)
    return [("plugin", name)]


def earlier_timings(earlier: Path | None) -> TimingCache:
    """What an earlier build in the same place measured; empty where there is nothing to be had."""
    if earlier is None:
        return TimingCache()
    try:
        return TimingCache(load_bundle(earlier, verify=False).path(TIMING_ROLE).read_bytes())
    except (UserError, OSError):
        # Timings only save time: a bundle that is damaged, older or without them starts from none.
        return TimingCache()


def write_timings(cache: TimingCache, directory: Path) -> Files:
    """Keep what was measured for the next build in the same place."""
    (directory / TIMING_CACHE).write_bytes(cache.content)
    return [(TIMING_ROLE, TIMING_CACHE)]
