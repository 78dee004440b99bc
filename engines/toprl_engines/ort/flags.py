"""The command line's part of the engine `onnx`: the names of its providers, and what is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from toprl_engines.ort.providers import PROVIDERS, RUN_OPTIONS, installed_providers


class ONNXRuntimeCommandLine:
    """The engine `onnx` on the command line; it has no options of its own for building."""

    title = "ONNX Runtime (--engine onnx)"
    build_options: Sequence[click.Option] = ()
    providers: tuple[str, ...] = tuple(PROVIDERS)
    run_options: Mapping[str, Sequence[str]] = MappingProxyType(RUN_OPTIONS)
    readers: Mapping[str, Callable[[Path], tuple[dict[str, Any], str]]] = MappingProxyType({})

    def options(self, values: Mapping[str, Any]) -> None:
        """None: the engine has no options of its own."""
        del values

    def diagnose(self) -> dict[str, Any]:
        """Version and providers of ONNX Runtime: all that it lists, and ours by the names that users write."""
        if find_spec("onnxruntime") is None:
            return {"version": None, "providers": [], "provider_names": []}
        import onnxruntime

        return {
            "version": onnxruntime.__version__,
            "providers": onnxruntime.get_available_providers(),
            "provider_names": list(installed_providers()),
        }

    def describe_diagnosis(self, found: Mapping[str, Any]) -> list[str]:
        """One line."""
        if found["version"] is None:
            return ["onnxruntime: not installed"]
        return [f"onnxruntime {found['version']}: --provider {', '.join(found['provider_names'])}"]

    def describe_details(self, details: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Nothing: a bundle of ONNX graphs has no details of its own."""
        del details
        return []

    def describe_preview(self, preview: Mapping[str, Any]) -> list[str]:
        """Nothing: the engine has no preview."""
        del preview
        return []
