"""Recipes that come with the package, one YAML file each, and the loader of these and of users' own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from toprl_export.errors import UserError
from toprl_export.files import parse_yaml, read_yaml
from toprl_export.registry import unknown_name
from toprl_export.tasks.registry import TASKS

SUFFIXES = (".yaml", ".yml")
PARTS = ("method", "base", "settings", "tasks")


@dataclass(frozen=True)
class Recipe:
    """``name`` (or path), the ``method`` it is for, and its ``settings``, the task's already applied."""

    name: str
    method: str
    settings: Mapping[str, Any]


def load_recipe(name: str, method: str, task: str) -> Recipe:
    """A recipe by name or by the path of a YAML file.

    The file is a mapping: ``method``, ``settings``, and optionally ``tasks``, which maps a task's name to settings that
    override the others for it, and ``base``, another recipe whose settings hold where this one sets none. Nested
    settings are overridden key by key.

    Raises:
        UserError: the recipe or its base is unknown, unreadable, for another method or not such a mapping, names an
            unknown task, or is its own base.
    """
    return Recipe(name, method, _settings(name, method, task, ()))


def _settings(name: str, method: str, task: str, above: tuple[str, ...]) -> Mapping[str, Any]:
    """The settings of a recipe that is the base of those ``above`` it."""
    content = read_yaml(Path(name), "a recipe") if _is_path(name) else parse_yaml(_read(name))
    if not isinstance(content, Mapping):
        raise UserError(f"recipe {name} is not a mapping: write method, settings and optionally base and tasks")
    for key in content:
        if key not in PARTS:
            raise unknown_name(f"part of recipe {name}", str(key), PARTS)
    if content.get("method") != method:
        raise UserError(f"recipe {name} is for method {content.get('method')!r}, not {method!r}: choose another recipe")
    overrides = _mapping(name, content, "tasks")
    known = {*TASKS.names(), task}
    for each in overrides:
        if each not in known:
            raise unknown_name(f"task of recipe {name}", str(each), sorted(known))
    own = _merged(_mapping(name, content, "settings"), _mapping(name, overrides, task))
    base = content.get("base")
    if base is None:
        return own
    if not isinstance(base, str) or base in (*above, name):
        raise UserError(f"recipe {name}: base is {base!r}, expected the name or file of another recipe: correct it")
    return _merged(_settings(base, method, task, (*above, name)), own)


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` where it sets something, else ``under``; one level of nested mappings likewise."""
    both = dict(under)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(under.get(key), Mapping)
        both[key] = {**under[key], **value} if nested else value
    return both


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(Path(file.name).stem for file in resources.files(__name__).iterdir() if file.name.endswith(SUFFIXES))


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith(SUFFIXES)


def _read(name: str) -> str:
    if name not in recipe_names():
        raise unknown_name("recipe", name, recipe_names())
    return resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def _mapping(name: str, content: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    value = content.get(part) or {}
    if not isinstance(value, Mapping):
        raise UserError(f"recipe {name}: {part} is {value!r}, expected a mapping: correct it")
    return value
