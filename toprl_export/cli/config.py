"""``--config FILE.yaml``: a file that supplies defaults for a command's flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from toprl_export.errors import UserError
from toprl_export.registry import unknown_name

CONFIG_FLAG = "--config"


def apply_config(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """The command's arguments with those of the ``--config`` file put before them.

    A flag given on the command line wins over the file. The result is parsed as if typed, so that a value in the
    file is checked like one on the command line.

    Raises:
        UserError: the file cannot be read, is not a YAML mapping, or has a key or value no flag takes.
    """
    flags = _flags(parser)
    path = _config_path(arguments) if CONFIG_FLAG.lstrip("-") in flags else None
    if path is None:
        return list(arguments)
    typed = {argument.partition("=")[0] for argument in arguments}
    supplied: list[str] = []
    for key, value in _read_mapping(path).items():
        name = str(key).replace("_", "-")
        if name not in flags or name in ("config", "help"):
            raise unknown_name(f"flag in {path}", str(key), sorted(set(flags) - {"config", "help"}))
        if typed.isdisjoint(flags[name].option_strings):
            supplied += _as_typed(path, flags[name], name, value)
    return [*supplied, *arguments]


def _flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {
        option.removeprefix("--"): action
        for action in parser._actions  # argparse offers no public way to list a parser's flags
        for option in action.option_strings
        if option.startswith("--")
    }


def _config_path(arguments: Sequence[str]) -> Path | None:
    path = None
    for position, argument in enumerate(arguments):
        if argument.startswith(CONFIG_FLAG + "="):
            path = argument.partition("=")[2]
        elif argument == CONFIG_FLAG and position + 1 < len(arguments):
            path = arguments[position + 1]
    return None if path is None else Path(path)


def _read_mapping(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path} cannot be read ({error.strerror}): give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not valid YAML ({error}): write lines such as `seed: 0`") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"--config {path} holds a {type(content).__name__}, expected lines such as `seed: 0`")
    return content


def _as_typed(path: Path, action: argparse.Action, name: str, value: object) -> list[str]:
    """The words a user would type for ``name: value``."""
    flag = f"--{name}"
    if isinstance(action, argparse.BooleanOptionalAction) or action.nargs == 0:
        return _as_switch(path, action, name, value)
    if value is None:
        raise UserError(f"--config {path}: {name} has no value: give one or leave the line out")
    if not isinstance(value, list):
        return [f"{flag}={_scalar(path, name, value)}"]
    items = [_scalar(path, name, item) for item in value]
    if isinstance(action, argparse._AppendAction):
        return [f"{flag}={item}" for item in items]
    if action.nargs is None:
        return [f"{flag}={','.join(items)}"]
    return [flag, *items]


def _as_switch(path: Path, action: argparse.Action, name: str, value: object) -> list[str]:
    if not isinstance(value, bool):
        raise UserError(f"--config {path}: {name} is {value!r}, expected true or false")
    if value:
        return [f"--{name}"]
    opposite = f"--no-{name}"
    return [opposite] if opposite in action.option_strings else []


def _scalar(path: Path, name: str, value: object) -> str:
    if isinstance(value, dict | list | bool) or value is None:
        raise UserError(f"--config {path}: {name} holds {value!r}, expected a text or a number")
    return str(value)
