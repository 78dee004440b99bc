"""Variants of a training recipe, and the file that lists them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from toprl_export.errors import UserError
from toprl_export.fields import read_fields
from toprl_export.registry import unknown_name

BASE_NAME: Final = "base"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True)
class Variant:
    """A recipe with something changed.

    Attributes:
        name: of its directory and for ``--variants``.
        group: what is varied.
        text: what it is here.
        settings: the recipe's settings that it replaces; of nested ones, key by key.
        stage_depths: where stages stand as shares of the decoder's depth, which every decoder can follow; None leaves
            them as they are.

    Raises:
        UserError: the name cannot be a directory's, or a depth is out of range.
    """

    name: str
    group: str
    text: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    stage_depths: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"variant {self.name!r} has no usable name: write it in small letters, digits, '.', '_' and '-'"
            )
        depths = self.stage_depths
        if depths is not None and (not depths or not all(0 <= depth < 1 for depth in depths)):
            raise UserError(f"variant {self.name}: stage_depths are {list(depths)}, expected some from 0 to below 1")

    def recipe_settings(self, decoder_layers: int) -> dict[str, Any]:
        """``settings``, with the stages' layers in a decoder of so many layers."""
        if self.stage_depths is None:
            return dict(self.settings)
        layers = sorted({int(depth * decoder_layers) for depth in self.stage_depths})
        return {**self.settings, "stage_layers": layers}


BASE = Variant(BASE_NAME, "", "the recipe as it is")


@dataclass(frozen=True)
class VariantsFile:
    """The YAML file."""

    format: Literal["toprl-export/variants"]
    version: Literal[1]
    variants: tuple[Variant, ...]


def load_variants(file: Path | None = None) -> tuple[Variant, ...]:
    """The variants that a YAML file lists; None for those that come with the package.

    Raises:
        UserError: the file cannot be read, is of another format, or lists a variant wrongly or twice.
    """
    source = str(file or "variants.yaml")
    text = _read(file) if file else resources.files("toprl_export.analyze").joinpath(source).read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML ({error}): correct it") from error
    variants = read_fields(VariantsFile, content, source, "correct it").variants
    names = [BASE_NAME, *(variant.name for variant in variants)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{source} has {', '.join(twice)} twice (base is the recipe itself): name each variant once")
    return variants


def choose_variants(known: Sequence[Variant], names: Sequence[str] | None) -> tuple[Variant, ...]:
    """The base, then the variants called ``names`` in their own order; None for all.

    Raises:
        UserError: a name is unknown.
    """
    for name in names or ():
        if name not in (BASE_NAME, *(variant.name for variant in known)):
            raise unknown_name("variant", name, [BASE_NAME, *(variant.name for variant in known)])
    return (BASE, *(variant for variant in known if names is None or variant.name in names))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(
            f"{file} cannot be read ({reason}); expected a toprl-export/variants file: check the path"
        ) from error
