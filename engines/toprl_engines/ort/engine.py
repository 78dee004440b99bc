"""The engine that users call `onnx`."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from toprl_export.engine import GRAPHS, BuildRequest, BuildResult, SessionOptions
from toprl_export.errors import UserError, require

if TYPE_CHECKING:
    from toprl_engines.ort.session import ONNXRuntimeSession
    from toprl_export.bundle import Bundle

TOOLS = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")
"""Distributions that shape the exported graphs."""
PRECISIONS = ("fp32", "fp16")
"""What ONNX Runtime computes on every device; the CPU computes fp16 in fp32."""


class ONNXRuntimeEngine:
    """ONNX graphs run by ONNX Runtime, on the CPU or by one of its providers for GPUs."""

    name = "onnx"

    def check(self) -> None:
        """Check that ONNX Runtime is installed.

        Raises:
            MissingExtraError: it is not.
        """
        require("onnxruntime", "serve-onnx")

    def check_request(self, request: BuildRequest) -> None:
        """Check that the graphs of ``request`` can be exported here.

        Raises:
            UserError: the precision is not supported.
            MissingExtraError: a package that exporting needs is not installed.
        """
        for module in ("torch", "transformers", "onnx", "onnxscript"):
            require(module, "onnx")
        if request.precision not in PRECISIONS:
            raise UserError(
                f"precision {request.precision!r} is not supported by the engine 'onnx', because ONNX Runtime has "
                f"no CPU kernels for it: use {' or '.join(PRECISIONS)}"
            )

    def build(self, request: BuildRequest, directory: Path) -> BuildResult:
        """Write ``vision.onnx``, ``prefill.onnx``, ``decode.onnx``, ``prefill_unpruned.onnx`` and ``weights.bin``.

        Raises:
            UserError: see :meth:`check_request`.
            MissingExtraError: see :meth:`check_request`.
        """
        self.check_request(request)
        from toprl_engines.graph.export import OPSET, WEIGHTS, ExportJob, export_graphs

        export_graphs(ExportJob.of(request), directory)
        files = [(name, f"{name}.onnx") for name in GRAPHS]
        toolchain = {tool: metadata.version(tool) for tool in TOOLS}
        return BuildResult((*files, ("weights", WEIGHTS)), toolchain, OPSET)

    def open(self, bundle: Bundle, options: SessionOptions) -> ONNXRuntimeSession:
        """Load a verified bundle.

        Raises:
            UserError: the provider is not available here, or a graph takes weights from a file that is not listed.
        """
        from toprl_engines.graph.external import check_external_data
        from toprl_engines.ort.session import ONNXRuntimeSession

        check_external_data(bundle)
        return ONNXRuntimeSession(bundle, options)

    def graph_flops(self, bundle: Bundle, batch: int, prompt_length: int, keep_counts: tuple[int, ...] | None) -> int:
        """Floating-point operations of one prefill, counted in the built graph; see `toprl_export.engine.Engine`."""
        from toprl_engines.feeds import prefill_feeds
        from toprl_engines.graph.flops import count_flops

        path = bundle.path("prefill_unpruned" if keep_counts is None else "prefill")
        return count_flops(path, prefill_feeds(bundle, batch, prompt_length, keep_counts)).total
