"""What an engine brings to the command line: its own build options, and its lines for `doctor` and `inspect`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from toprl_export.errors import UserError
from toprl_export.registry import Registry

if TYPE_CHECKING:
    import click

    from toprl_export.engine import EngineOptions

Reader = Callable[[Path], tuple[dict[str, Any], str]]
"""Reads a file of one format: its checked content as a JSON object, and a summary for people."""


class EngineCommandLine(Protocol):
    """One engine's part of the command line.

    Importing it must be cheap, for every `--help` that names it does so: neither the engine nor its libraries are
    imported outside of methods. Classes are made without arguments.

    Attributes:
        title: heading of its options in ``build --help``, such as "TensorRT (--engine trt)".
        build_options: its own options of ``build``; their names differ from those of ``build`` and of other engines.
        providers: names that ``--provider`` takes; empty where there is no choice.
        run_options: names of its options for running a bundle (``--engine-option``), and their values.
        readers: by name of a file format, what ``inspect`` reads such files with.
    """

    title: str
    build_options: Sequence[click.Option]
    providers: tuple[str, ...]
    run_options: Mapping[str, Sequence[str]]
    readers: Mapping[str, Reader]

    def options(self, values: Mapping[str, Any]) -> EngineOptions | None:
        """What ``build`` is told, from the values of ``build_options`` by parameter name; None without options.

        Raises:
            UserError: a value is impossible, or two contradict each other.
        """
        ...

    def diagnose(self) -> dict[str, Any]:
        """What ``doctor`` reports (versions, providers, GPUs) as a JSON object; raises for nothing that is missing."""
        ...

    def describe_diagnosis(self, found: Mapping[str, Any]) -> list[str]:
        """The same as lines for people."""
        ...

    def describe_preview(self, preview: Mapping[str, Any]) -> list[str]:
        """Lines of ``build --dry-run`` from what the engine's `ConfigurableEngine.preview` found."""
        ...

    def describe_details(self, details: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Names and values for ``inspect BUNDLE``, from the engine's part of the manifest."""
        ...


ENGINE_COMMAND_LINES: Registry[type[EngineCommandLine]] = Registry(
    "engine's command line", group="toprl_export.engine_cli"
)


@dataclass(frozen=True)
class CommandLines:
    """What the installed engines bring.

    Attributes:
        loaded: by the engine's name.
        broken: why others could not be imported, by the engine's name.
    """

    loaded: dict[str, EngineCommandLine]
    broken: dict[str, str]


def load_command_lines() -> CommandLines:
    """Import what every installed engine brings; one that cannot be imported must not stop the others."""
    loaded: dict[str, EngineCommandLine] = {}
    broken: dict[str, str] = {}
    for name in ENGINE_COMMAND_LINES.names():
        try:
            loaded[name] = ENGINE_COMMAND_LINES.get(name)()
        except (UserError, ImportError) as error:
            broken[name] = str(error)
    return CommandLines(loaded, broken)
