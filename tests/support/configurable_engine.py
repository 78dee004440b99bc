"""The fake engine, with options of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support.fake_engine import FakeEngine
from toprl_export.engine import BuildRequest, BuildResult
from toprl_export.tensorrt_options import TensorRTOptions

RANGES = (
    {"name": "key_0", "values": False, "least": (1, 2), "usual": (1, 3), "most": (4, 9)},
    {"name": "value_0", "values": False, "least": (1, 2), "usual": (1, 3), "most": (4, 9)},
    {"name": "keep_counts", "values": True, "least": (3, 2), "usual": (8, 4), "most": (25, 25)},
)


class ConfigurableEngine(FakeEngine):
    """Chooses the binding; what it builds depends on nothing but the request."""

    name = "trt"
    earlier: Path | None = None

    def resolve(self, options: TensorRTOptions) -> TensorRTOptions:
        attention = options.attention or ("plugin" if options.plugin_library else "native")
        return replace(options, binding=options.binding or "tensorrt_rtx", attention=attention)

    def preview(self, request: BuildRequest) -> dict[str, Any]:
        assert request.options is not None
        return {
            "binding": f"{request.options.binding} 1.7.1",
            "gpu": None,
            "attention": request.options.attention,
            "plugin_library": None,
            "flags": ["STRONGLY_TYPED"],
            "workspace_gib": request.options.workspace_gib,
            "profiles": {"decode": list(RANGES)},
        }

    def build(self, request: BuildRequest, directory: Path) -> BuildResult:
        assert request.options is not None
        type(self).earlier = request.earlier
        made = super().build(request, directory)
        return replace(made, details={"binding": request.options.binding, "attention": request.options.attention})
