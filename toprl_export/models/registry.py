"""Which model families have an adapter, and which models are known by a short name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from toprl_export.registry import Registry

if TYPE_CHECKING:
    from toprl_export.models.adapter import LVLMAdapter
    from toprl_export.runtime.frontend import Frontend

FAMILIES: Registry[type[LVLMAdapter]] = Registry(
    "model family",
    {
        "llava": "toprl_export.models.llava:LlavaAdapter",
        "llava_next": "toprl_export.models.llava_next.adapter:LlavaNextAdapter",
        "qwen2_vl": "toprl_export.models.qwen_vl.adapter:Qwen2VLAdapter",
        "qwen2_5_vl": "toprl_export.models.qwen_vl.adapter:Qwen25VLAdapter",
        "internvl": "toprl_export.models.internvl.adapter:InternVLAdapter",
    },
    group="toprl_export.models",
)


FRONTENDS: Registry[type[Frontend]] = Registry(
    "model family",
    {
        "llava": "toprl_export.runtime.frontend:FixedFrontend",
        "llava_next": "toprl_export.models.llava_next.frontend:LlavaNextFrontend",
        "qwen2_vl": "toprl_export.models.qwen_vl.frontend:QwenVLFrontend",
        "qwen2_5_vl": "toprl_export.models.qwen_vl.frontend:QwenVLFrontend",
        "internvl": "toprl_export.models.internvl.frontend:InternVLFrontend",
    },
    group="toprl_export.frontends",
)
"""What bundles of these families are served with, without torch."""


@dataclass(frozen=True)
class NamedModel:
    """A model that comes with the package."""

    package: str
    folder: str
    description: str


NAMED_MODELS = {
    "mini": NamedModel(
        "toprl_export.models.mini",
        "checkpoint",
        "embedded LLaVA, 3.9 M parameters, 576 visual tokens, 8 decoder layers; answers the mini tasks and easy-vqa",
    )
}
