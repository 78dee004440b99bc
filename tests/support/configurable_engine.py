"""The fake engine, with options of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support.fake_engine import FakeEngine
from toprl_engines.trt.compiled import Compiled
from toprl_engines.trt.options import TensorRTOptions
from toprl_export.engine import BuildRequest, BuildResult, EngineOptions

RANGES = (
    {"name": "key_0", "values": False, "min": (1, 2), "opt": (1, 3), "max": (4, 9)},
    {"name": "value_0", "values": False, "min": (1, 2), "opt": (1, 3), "max": (4, 9)},
    {"name": "keep_counts", "values": True, "min": (3, 2), "opt": (8, 4), "max": (25, 25)},
)


class ConfigurableEngine(FakeEngine):
    """Chooses the binding; what it builds depends on nothing but the request."""

    name = "trt"
    earlier: Path | None = None

    def resolve(self, options: EngineOptions | None) -> TensorRTOptions:
        options = options or TensorRTOptions()
        assert isinstance(options, TensorRTOptions)
        attention = options.attention or ("plugin" if options.plugin_library else "native")
        return replace(options, binding=options.binding or "tensorrt_rtx", attention=attention)

    def preview(self, request: BuildRequest) -> dict[str, Any]:
        options = request.options
        assert isinstance(options, TensorRTOptions)
        return {
            "binding": f"{options.binding} 1.7.1",
            "gpu": None,
            "attention": options.attention,
            "plugin_library": None,
            "flags": ["STRONGLY_TYPED"],
            "workspace_gib": options.workspace_gib,
            "profiles": {"decode": list(RANGES)},
        }

    def build(self, request: BuildRequest, directory: Path) -> BuildResult:
        options = request.options
        assert isinstance(options, TensorRTOptions) and options.binding and options.attention
        type(self).earlier = request.earlier
        made = super().build(request, directory)
        compiled = Compiled(binding=options.binding, binding_version="1.7.1", attention=options.attention)
        return replace(made, details=compiled.to_details())
