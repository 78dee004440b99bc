"""The engine that users call `trt`."""

from __future__ import annotations

from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toprl_engines.trt.binding import distribution_of, installed_bindings, load_binding
from toprl_engines.trt.checks import check_build, check_options
from toprl_engines.trt.compiled import find_gpu, graph_role
from toprl_engines.trt.options import TensorRTOptions, check_plugin_library
from toprl_export.engine import BuildRequest, BuildResult, EngineOptions, SessionOptions
from toprl_export.errors import UserError, require

if TYPE_CHECKING:
    from toprl_engines.trt.build.plan_job import PlanJob
    from toprl_engines.trt.run.session import TensorRTSession
    from toprl_export.bundle import Bundle

TOOLS = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")
"""Distributions that shape the exported graphs."""


class TensorRTEngine:
    """TensorRT plans, built by full TensorRT or by TensorRT for RTX."""

    name = "trt"

    def check(self) -> None:
        """Check that a TensorRT is installed, whichever of the two.

        Raises:
            MissingExtraError: none is.
        """
        if not installed_bindings():
            load_binding()

    def resolve(self, options: EngineOptions | None) -> TensorRTOptions:
        """``options`` with binding and attention chosen, and full TensorRT's target, which is the GPU at hand.

        Args:
            options: `TensorRTOptions`; None for the defaults.

        Raises:
            UserError: these are another engine's options, the binding or the plugin's library is missing, or the
                binding cannot do what the options want.
        """
        options = TensorRTOptions() if options is None else options
        if not isinstance(options, TensorRTOptions):
            raise UserError(
                f"the engine 'trt' takes TensorRTOptions, not {type(options).__name__}: pass TensorRTOptions"
            )
        binding, gpu = load_binding(options.binding), find_gpu()
        check_options(options, binding, gpu)
        if options.plugin_library is not None:
            check_plugin_library(options.plugin_library)
        attention = options.attention or ("native" if options.plugin_library is None else "plugin")
        here = (gpu.sm,) if gpu is not None and not binding.rtx and not options.hardware_compatible else ()
        targets = options.target_sms or here
        return replace(options, binding=binding.name, attention=attention, target_sms=targets)

    def check_request(self, request: BuildRequest) -> None:
        """Check that plans of ``request`` can be built, here or on a machine with a GPU.

        Raises:
            UserError: precision, plan or options are not supported.
            MissingExtraError: a package that exporting needs is not installed.
        """
        if request.plan.shares:
            raise UserError(
                f"the engine trt builds for one number of visual tokens, and pictures of the family "
                f"{request.adapter.family} differ in it: use --engine onnx"
            )
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
        from toprl_engines.graph.export import OPSET
        from toprl_engines.trt.build.plan_job import write_plans

        files = write_plans(job, request.earlier, directory)
        toolchain = {tool: metadata.version(tool) for tool in (*TOOLS, *distribution_of(job.binding))}
        return BuildResult(tuple(files), toolchain, OPSET, job.compiled(gpu).to_details())

    def open(self, bundle: Bundle, options: SessionOptions) -> TensorRTSession:
        """Load a verified bundle.

        Raises:
            UserError: the bundle cannot run here, or a graph takes weights from a file that is not listed.
        """
        from toprl_engines.graph.external import check_external_data
        from toprl_engines.trt.run.session import TensorRTSession

        check_external_data(bundle)
        return TensorRTSession(bundle, options)

    def graph_flops(
        self, bundle: Bundle, batch: int, prompt_length: int, keep_counts: tuple[int, ...] | None
    ) -> int | None:
        """Floating-point operations of one prefill; None where the bundle does not hold the graph that was built."""
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
        from toprl_engines.trt.build.plan_job import PlanJob

        options = self.resolve(request.options)
        check_build(request, options)
        return PlanJob(request, options, load_binding(options.binding))
