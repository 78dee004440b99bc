"""toprl-export: learned visual-token pruning for vision-language models, exported into the engine.

`train` trains an agent, `build` exports it into a bundle, `validate` gates the bundle and `load` serves it; `compare`
holds agents against methods that need no training. What is public here is imported when it is first used, so that
importing the package stays cheap:

>>> import toprl_export
>>> plan = toprl_export.baseline_plan("uniform", visual_tokens=576, decoder_layers=8, budgets=[192, 64])
>>> plan.stage_layers, plan.schedule(64).keep_counts
((0, 2, 5), (106, 63, 37))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toprl_export.api import LoadedBundle, load
    from toprl_export.building import build
    from toprl_export.comparison.request import CompareRequest
    from toprl_export.comparison.runner import compare
    from toprl_export.errors import MissingExtraError, UserError
    from toprl_export.pruning.baselines.specs import baseline_plan
    from toprl_export.pruning.plan import PruningPlan, make_plan
    from toprl_export.pruning.schedule import solve_schedule
    from toprl_export.runtime.generation import Generation
    from toprl_export.trainer import train
    from toprl_export.validation.bench import ValidationOptions
    from toprl_export.validation.gates import GateLimits
    from toprl_export.validation.runner import validate

    __version__: str

_MODULE_OF = {
    "CompareRequest": "toprl_export.comparison.request",
    "GateLimits": "toprl_export.validation.gates",
    "Generation": "toprl_export.runtime.generation",
    "LoadedBundle": "toprl_export.api",
    "MissingExtraError": "toprl_export.errors",
    "PruningPlan": "toprl_export.pruning.plan",
    "UserError": "toprl_export.errors",
    "ValidationOptions": "toprl_export.validation.bench",
    "baseline_plan": "toprl_export.pruning.baselines.specs",
    "build": "toprl_export.building",
    "compare": "toprl_export.comparison.runner",
    "load": "toprl_export.api",
    "make_plan": "toprl_export.pruning.plan",
    "solve_schedule": "toprl_export.pruning.schedule",
    "train": "toprl_export.trainer",
    "validate": "toprl_export.validation.runner",
}

__all__ = [
    "CompareRequest",
    "GateLimits",
    "Generation",
    "LoadedBundle",
    "MissingExtraError",
    "PruningPlan",
    "UserError",
    "ValidationOptions",
    "__version__",
    "baseline_plan",
    "build",
    "compare",
    "load",
    "make_plan",
    "solve_schedule",
    "train",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    if name == "__version__":
        from importlib import metadata

        return metadata.version("toprl-export")
    raise AttributeError(f"module 'toprl_export' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
