"""An engine with options of its own, and what it brings to the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tests.support.fake_engine import FakeEngine
from toprl_export.engine import BuildRequest, BuildResult
from toprl_export.errors import UserError


@dataclass(frozen=True)
class FakeOptions:
    """``tiles`` must be even."""

    tiles: int = 4
    fused: bool = False
    wide: bool = False

    def __post_init__(self) -> None:
        if self.tiles % 2:
            raise UserError(f"--tiles is {self.tiles}, expected an even number")

    @property
    def given_flags(self) -> tuple[str, ...]:
        return (*(["--tiles"] if self.tiles != 4 else []), *(["--fused"] if self.fused else []))

    @property
    def identity(self) -> dict[str, Any]:
        return {"tiles": self.tiles, "fused": self.fused, "wide": self.wide}


class ConfigurableFakeEngine(FakeEngine):
    """The fake engine, told by `FakeOptions`."""

    name = "configurable"
    told: object = None

    def resolve(self, options: object) -> FakeOptions:
        return options if isinstance(options, FakeOptions) else FakeOptions()

    def preview(self, request: BuildRequest) -> dict[str, Any]:
        return {"tiles": getattr(request.options, "tiles", None)}

    def build(self, request: BuildRequest, directory: Path) -> BuildResult:
        type(self).told = request.options
        return super().build(request, directory)


class FakeCommandLine:
    """What `ConfigurableFakeEngine` brings."""

    title = "Fake (--engine configurable)"
    build_options = (
        click.Option(["--tiles"], type=int, metavar="N", help="how many tiles (default: 4)"),
        click.Option(["--fused/--no-fused"], default=None, help="whether tiles are fused"),
        click.Option(["--wide"], is_flag=True, default=None, help="make tiles wide"),
    )
    providers = ("here", "there")
    run_options = {"tiles": ("few", "many")}  # noqa: RUF012

    def options(self, values: Mapping[str, Any]) -> FakeOptions | None:
        given = {name: value for name, value in values.items() if value is not None}
        return FakeOptions(**given) if given else None

    def diagnose(self) -> dict[str, Any]:
        return {"version": "1.2.3"}

    def describe_diagnosis(self, found: Mapping[str, Any]) -> list[str]:
        return [f"fake {found['version']}: --provider here, there"]

    def describe_preview(self, preview: Mapping[str, Any]) -> list[str]:
        return [f"  tiles      {preview['tiles']}"]

    def describe_details(self, details: Mapping[str, Any]) -> list[tuple[str, str]]:
        return [("tiles", str(details["tiles"]))]

    @property
    def readers(self) -> Mapping[str, Callable[[Path], tuple[dict[str, Any], str]]]:
        return {"fake/tiles": lambda path: (json.loads(path.read_bytes()), f"tiles in {path.name}")}
