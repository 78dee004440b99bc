"""toprl-export: learned visual-token pruning for vision-language models, exported into the engine.

`load` serves a bundle, `train` trains an agent; `toprl_export.build.build` and `toprl_export.validate.runner.validate`
are the steps between. All are imported when first used, so that importing the package stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toprl_export.api import load
    from toprl_export.trainer import train

__all__ = ["load", "train"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from toprl_export.api import load

        return load
    if name == "train":
        from toprl_export.trainer import train

        return train
    raise AttributeError(f"module 'toprl_export' has no attribute {name!r}")
