"""Names of lazily imported objects: built-in ones, and those that other packages add through entry points."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib import metadata
from typing import Any, Generic, TypeVar, cast

from toprl_export.errors import UserError, missing_extra

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps a name to ``"package.module:attribute"`` and imports it only when it is used.

    >>> shapes = Registry("shape", {"fraction": "fractions:Fraction"})
    >>> shapes.get("fraction")(1, 3)
    Fraction(1, 3)

    Args:
        kind: what the names stand for, in the singular ("task"); used in messages.
        targets: the built-in names.
        group: entry-point group through which installed packages add names.
    """

    def __init__(self, kind: str, targets: Mapping[str, str] | None = None, group: str | None = None) -> None:
        self._kind = kind
        self._builtin = dict(targets or {})
        self._group = group

    @cached_property
    def _targets(self) -> dict[str, str]:
        targets = dict(self._builtin)
        for point in metadata.entry_points(group=self._group) if self._group else ():
            target = f"{point.module}:{point.attr}"
            earlier = targets.setdefault(point.name, target)
            if earlier != target:
                raise UserError(
                    f"{self._kind} {point.name!r} is registered twice, as {earlier} and as {target}: "
                    "uninstall one of the two packages"
                )
        return targets

    def names(self) -> list[str]:
        """All known names: the built-in ones in their order, then those of entry points."""
        return list(self._targets)

    def __contains__(self, name: object) -> bool:
        return name in self._targets

    def get(self, name: str) -> T:
        """Import and return the object called ``name``.

        Raises:
            UserError: the name is unknown (the message lists the known ones), or what an installed
                package registered under it cannot be imported.
            MissingExtraError: importing it needs a package that an extra brings.
        """
        if name not in self._targets:
            raise unknown_name(self._kind, name, self._targets)
        target = self._targets[name]
        module_name, _, attribute = target.partition(":")
        try:
            loaded: Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                loaded = getattr(loaded, part)
        except ModuleNotFoundError as error:
            raise missing_extra(error) or self._broken(name, target, error) from error
        except AttributeError as error:
            raise self._broken(name, target, error) from error
        return cast(T, loaded)

    def _broken(self, name: str, target: str, error: Exception) -> UserError:
        return UserError(f"{self._kind} {name!r} cannot be loaded from {target} ({error}): reinstall what provides it")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for an unknown name: lists the known ones and suggests the closest."""
    choices = list(known)
    close = difflib.get_close_matches(name, choices, n=1)
    suggestion = f"; did you mean {close[0]!r}?" if close else ";"
    return UserError(f"unknown {kind} {name!r}{suggestion} known: {', '.join(choices) or 'none is installed'}")
