"""Build options that only ``--engine trt`` has.

The core sees no more of it than `toprl_export.engine.EngineOptions`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from toprl_engines.trt.binding import BINDINGS
from toprl_export.errors import UserError
from toprl_export.files import sha256_of
from toprl_export.registry import unknown_name

ATTENTIONS = ("plugin", "native")
"""Who computes attention in a plan."""


@dataclass(frozen=True, kw_only=True)
class TensorRTOptions:
    """How TensorRT builds its plans. All have defaults; the engine replaces None by what it finds (`resolve`).

    Attributes:
        attention: "plugin" lets `toprl::FlashAttention` compute attention, "native" TensorRT itself; None: the plugin
            where ``plugin_library`` is given.
        plugin_library: the shared library with the plugin; None with "plugin": its Python route.
        max_batch: maximum number of questions at once.
        max_text: maximum number of text tokens of a prompt, with what its template puts around the question.
        max_new_tokens: maximum length of an answer, in tokens.
        workspace_gib: device memory that a layer may use for its intermediate results; None: all there is.
        weight_stripped: leave weights out of the plans; loading fills them in from the bundle's graphs.
        refittable: allow weights to be replaced in a loaded plan.
        version_compatible: let later versions of TensorRT load the plans.
        hardware_compatible: let all GPUs from Ampere on run the plans.
        binding: which of `toprl_engines.trt.binding.BINDINGS`; None: the full one where it is installed.
        target_sms: compute capabilities for TensorRT for RTX to build for, such as "8.9"; empty: its portable ones.

    Raises:
        UserError: a value is impossible, or two contradict each other.
    """

    attention: Literal["plugin", "native"] | None = None
    plugin_library: Path | None = None
    max_batch: int = 4
    max_text: int = 128
    max_new_tokens: int = 256
    workspace_gib: float | None = None
    weight_stripped: bool = False
    refittable: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    binding: str | None = None
    target_sms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.attention not in (None, *ATTENTIONS):
            raise unknown_name("attention", str(self.attention), ATTENTIONS)
        if self.binding not in (None, *BINDINGS):
            raise unknown_name("TensorRT binding", str(self.binding), tuple(BINDINGS))
        if self.attention == "native" and self.plugin_library is not None:
            raise UserError("--plugin-library is for --attention plugin, not native: leave one of the two out")
        for name in ("max_batch", "max_text", "max_new_tokens"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UserError(f"{_flag(name)} is {value!r}, expected a whole number of at least 1: correct it")
        workspace = self.workspace_gib
        if workspace is not None and not (math.isfinite(workspace) and workspace > 0):
            raise UserError(f"--workspace-gib is {workspace!r}, expected a number above 0: correct it")
        for sm in self.target_sms:
            if not re.fullmatch(r"\d+\.\d", sm, re.ASCII):
                raise UserError(f"--target-sm is {sm!r}, expected a compute capability such as 8.9: correct it")
        if self.hardware_compatible and self.target_sms:
            raise UserError("--hardware-compatible and --target-sm exclude each other: leave one of the two out")

    @property
    def given_flags(self) -> tuple[str, ...]:
        """The flags whose values differ from their defaults."""
        return tuple(_flag(field.name) for field in fields(self) if getattr(self, field.name) != field.default)

    @property
    def identity(self) -> dict[str, Any]:
        """What a plan depends on, as a JSON object: the plugin by its content, wherever it lies.

        Raises:
            UserError: the plugin's library cannot be read.
        """
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.plugin_library is not None:
            check_plugin_library(self.plugin_library)
            content["plugin_library"] = sha256_of(self.plugin_library)
        return {**content, "target_sms": list(self.target_sms)}


def check_plugin_library(path: Path) -> None:
    """Check that ``path`` is a file.

    Raises:
        UserError: it is none.
    """
    if not path.is_file():
        raise UserError(
            f"the plugin library {path} does not exist: build it with engines/flash_attention/build.sh, "
            "or use --attention native"
        )


def _flag(name: str) -> str:
    return "--" + {"binding": "tensorrt-binding", "target_sms": "target-sm"}.get(name, name.replace("_", "-"))
