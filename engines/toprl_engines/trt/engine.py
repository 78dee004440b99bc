"""The engine that users call `trt`."""

from __future__ import annotations

from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toprl_engines.trt.binding import distribution_of, installed_bindings, load_binding
from toprl_engines.trt.build_report import REPORT_NAME, BuildReport, GraphBuild, write_build_report
from toprl_engines.trt.checks import check_build, check_options
from toprl_engines.trt.compiled import find_gpu
from toprl_engines.trt.options import TensorRTOptions, check_plugin_library
from toprl_engines.trt.plugin import LIBRARY, register_plugin
from toprl_export.engine import GRAPHS, BuildRequest, BuildResult, SessionOptions
from toprl_export.errors import UserError, require
from toprl_export.manifest import Compiled, GpuEntry
from toprl_export.progress import Progress

if TYPE_CHECKING:
    from toprl_engines.trt.build.builder import TimingCache
    from toprl_engines.trt.build.plan_job import PlanJob
    from toprl_engines.trt.run.session import TensorRTSession
    from toprl_export.bundle import Bundle

TOOLS = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")
"""Distributions that shape the exported graphs."""


class TensorRTEngine:
    """TensorRT plans, built by full TensorRT or by TensorRT for RTX."""

    name = "trt"

    def check(self) -> None:
        """Return when a TensorRT is installed, whichever of the two.

        Raises:
            MissingExtraError: none is.
        """
        if not installed_bindings():
            load_binding()

    def resolve(self, options: TensorRTOptions) -> TensorRTOptions:
        """``options`` with binding and attention chosen, and full TensorRT's target, which is the GPU at hand.

        Raises:
            UserError: the binding or the plugin's library is missing, or the binding cannot do what is asked.
        """
        binding, gpu = load_binding(options.binding), find_gpu()
        check_options(options, binding, gpu)
        if options.plugin_library is not None:
            check_plugin_library(options.plugin_library)
        attention = options.attention or ("native" if options.plugin_library is None else "plugin")
        here = (gpu.sm,) if gpu is not None and not binding.rtx and not options.hardware_compatible else ()
        targets = options.target_sms or here
        return replace(options, binding=binding.name, attention=attention, target_sms=targets)

    def check_request(self, request: BuildRequest) -> None:
        """Return when plans of ``request`` can be built, here or on a machine with a GPU.

        Raises:
            UserError: precision, opset, plan or options are not supported.
            MissingExtraError: a package that exporting needs is not installed.
        """
        self._job(request)

    def preview(self, request: BuildRequest) -> dict[str, Any]:
        """What :meth:`build` would do, as a JSON object."""
        job = self._job(request)
        options, gpu = job.options, find_gpu()
        return {
            "binding": f"{job.binding.name} {job.binding.version}",
            "gpu": None if gpu is None else asdict(gpu),
            "attention": job.attention,
            "plugin_library": None if options.plugin_library is None else str(options.plugin_library),
            "flags": list(job.settings.described),
            "workspace_gib": options.workspace_gib,
            "profiles": {name: [asdict(one) for one in ranges] for name, ranges in job.profiles().items()},
        }

    def build(self, request: BuildRequest, directory: Path) -> BuildResult:
        """Write a plan per graph and ``build_report.json``, and what loading the plans needs.

        Raises:
            UserError: see :meth:`check_request`; or there is no GPU where TensorRT needs one, too little memory on it,
                or TensorRT fails.
        """
        job, gpu = self._job(request), find_gpu()
        if gpu is None and not job.binding.rtx:
            raise UserError(
                "full TensorRT builds on an NVIDIA GPU, and this machine has none: build on one that has, or use "
                "--tensorrt-binding tensorrt_rtx, which needs none"
            )
        from toprl_engines.trt.build.plan_job import copy_plugin, earlier_timings, keep_graphs, write_timings

        library, files = job.options.plugin_library, []
        if job.attention == "plugin":
            register_plugin(job.binding, library)
            files += [] if library is None else copy_plugin(library, directory, LIBRARY)
        # TensorRT for RTX chooses kernels when the plans are loaded, so its builder measures nothing.
        cache = None if job.binding.rtx else earlier_timings(request.earlier)
        write_build_report(directory, build_plans(job, cache, directory))
        files += [("build_report", REPORT_NAME), *((name, f"{name}.plan") for name in GRAPHS)]
        files += keep_graphs(directory, job.keeps_graphs)
        files += [] if cache is None else write_timings(cache, directory)
        toolchain = {tool: metadata.version(tool) for tool in (*TOOLS, *distribution_of(job.binding))}
        return BuildResult(tuple(files), toolchain, request.opset, _compiled(job, gpu))

    def open(self, bundle: Bundle, options: SessionOptions) -> TensorRTSession:
        """Load a verified bundle.

        Raises:
            UserError: the bundle cannot run here.
        """
        from toprl_engines.trt.run.session import TensorRTSession

        return TensorRTSession(bundle, options)

    def graph_flops(
        self, bundle: Bundle, batch: int, prompt_length: int, keep_counts: tuple[int, ...] | None
    ) -> int | None:
        """Floating-point operations of one prefill; None where the bundle does not hold the graph that was built."""
        from toprl_engines.trt.build.plan_job import graph_role

        role = graph_role("prefill_unpruned" if keep_counts is None else "prefill")
        if role not in {file.role for file in bundle.manifest.files}:
            return None
        from toprl_engines.feeds import prefill_feeds
        from toprl_engines.graph.flops import count_flops

        return count_flops(bundle.path(role), prefill_feeds(bundle, batch, prompt_length, keep_counts)).total

    def _job(self, request: BuildRequest) -> PlanJob:
        """The request, checked as far as can be without exporting it."""
        for module in ("torch", "transformers", "onnx", "onnxscript"):
            require(module, "onnx")
        from toprl_engines.graph.export import OPSET
        from toprl_engines.trt.build.plan_job import PlanJob

        if request.opset != OPSET:
            raise UserError(f"opset {request.opset} is not supported by the engine 'trt': use {OPSET}")
        options = self.resolve(request.options or TensorRTOptions())
        check_build(request, options)
        return PlanJob(request, options, load_binding(options.binding))


def build_plans(job: PlanJob, cache: TimingCache | None, directory: Path) -> BuildReport:
    """Export the graphs into a folder below ``directory`` and build a plan from each.

    Args:
        job: what is built.
        cache: of timings, which grows; None where nothing is timed.
        directory: takes the plans; the folder of the graphs stays in it.

    Raises:
        UserError: TensorRT cannot build one of them.
    """
    from toprl_engines.graph.export import export_graphs
    from toprl_engines.trt.build.builder import PlanBuilder
    from toprl_engines.trt.build.plan_job import GRAPH_FOLDER
    from toprl_engines.trt.passes.copies import write_copy

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


def _compiled(job: PlanJob, gpu: GpuEntry | None) -> Compiled:
    options = job.options
    return Compiled(
        binding=job.binding.name,
        binding_version=job.binding.version,
        gpu=gpu,
        target_sms=options.target_sms,
        attention=job.attention,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        weight_stripped=options.weight_stripped,
    )
