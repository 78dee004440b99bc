"""A build request as TensorRT sees it, and how its plans and the files beside them get into a bundle."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from toprl_engines.graph.export import WEIGHTS, ExportJob, export_graphs, vision_inputs
from toprl_engines.graph.signature import GraphSpec
from toprl_engines.trt.binding import Binding
from toprl_engines.trt.build.builder import BuilderSettings, PlanBuilder, TimingCache
from toprl_engines.trt.build.profiles import ProfileLimits, graph_profiles
from toprl_engines.trt.build_report import REPORT_NAME, BuildReport, GraphBuild, InputRange, write_build_report
from toprl_engines.trt.compiled import Compiled, GpuEntry, copy_role, graph_role
from toprl_engines.trt.options import TensorRTOptions
from toprl_engines.trt.passes.copies import SUFFIX, write_copy
from toprl_engines.trt.plugin import LIBRARY, register_plugin
from toprl_export.bundle import load_bundle
from toprl_export.engine import GRAPHS, BuildRequest
from toprl_export.errors import UserError
from toprl_export.progress import Progress

GRAPH_FOLDER = "graphs"
TIMING_CACHE = "timing.cache"
TIMING_ROLE = "timing_cache"
Files = list[tuple[str, str]]
"""Role and path of each, relative to the bundle."""


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
        return ExportJob.of(self.request)

    @property
    def settings(self) -> BuilderSettings:
        """The builder's settings."""
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
            "vision": layout.vision(vision_inputs(adapter.frontend)),
            "prefill": layout.prefill(),
            "decode": layout.decode(),
            "prefill_unpruned": layout.prefill_unpruned(),
        }
        options = self.options
        limits = ProfileLimits(options.max_batch, options.max_text, options.max_new_tokens)
        return graph_profiles(specs, layout, self.request.plan, limits, adapter.max_length)

    def compiled(self, gpu: GpuEntry | None) -> Compiled:
        """What the plans depend on when they are built on a machine with ``gpu``."""
        options = self.options
        return Compiled(
            binding=self.binding.name,
            binding_version=self.binding.version,
            gpu=gpu,
            target_sms=options.target_sms,
            attention=self.attention,
            version_compatible=options.version_compatible,
            hardware_compatible=options.hardware_compatible,
            weight_stripped=options.weight_stripped,
        )


def write_plans(job: PlanJob, earlier: Path | None, directory: Path) -> Files:
    """Write a plan per graph, ``build_report.json``, and what loading the plans needs.

    Args:
        job: what is built.
        earlier: a bundle whose timings may be reused.
        directory: takes the files.

    Raises:
        UserError: the plugin cannot be loaded, or TensorRT cannot build one of the plans.
    """
    library, files = job.options.plugin_library, Files()
    if job.attention == "plugin":
        register_plugin(job.binding, library)
        files += [] if library is None else copy_plugin(library, directory, LIBRARY)
    # TensorRT for RTX chooses kernels when the plans are loaded, so its builder measures nothing.
    cache = None if job.binding.rtx else earlier_timings(earlier)
    write_build_report(directory, build_plans(job, cache, directory))
    files += [("build_report", REPORT_NAME), *((name, f"{name}.plan") for name in GRAPHS)]
    files += keep_graphs(directory, job.keeps_graphs)
    files += [] if cache is None else write_timings(cache, directory)
    return files


def build_plans(job: PlanJob, cache: TimingCache | None, directory: Path) -> BuildReport:
    """Export the graphs into a folder below ``directory`` and build a plan from each.

    Args:
        job: what is built.
        cache: of timings, which grows; None where nothing is timed.
        directory: takes the plans; the folder of the graphs stays in it.

    Raises:
        UserError: TensorRT cannot build one of them.
    """
    profiles, folder = job.profiles(), directory / GRAPH_FOLDER
    folder.mkdir()
    reused = cache is not None and bool(cache.content)
    builder = PlanBuilder(job.binding, job.settings, cache)
    graphs: dict[str, GraphBuild] = {}
    with Progress("exporting graphs", 1 + len(GRAPHS), "graph") as bar:
        export_graphs(job.export, folder)
        for name in GRAPHS:
            bar.update()
            bar.describe(f"building {name}")
            copy = write_copy(folder / f"{name}.onnx", job.attention)
            graphs[name] = builder.build(copy, profiles[name], directory / f"{name}.plan")
    return BuildReport(
        binding=f"{job.binding.name} {job.binding.version}",
        precision=job.request.precision,
        attention=job.attention,
        flags=job.settings.described,
        workspace_bytes=job.settings.workspace_bytes,
        timing_cache=reused,
        graphs=graphs,
    )


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
