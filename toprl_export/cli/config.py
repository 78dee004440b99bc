"""``--config FILE.yaml``: a file that supplies defaults for a command's flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from toprl_export.errors import UserError
from toprl_export.files import read_yaml
from toprl_export.registry import unknown_name

NOT_IN_A_FILE = ("config", "help")


def read_defaults(path: Path, options: Mapping[str, click.Option]) -> dict[str, Any]:
    """What a file says about a command's flags, as click's ``default_map``.

    Values stay the text that a user would type, so that a value in the file is checked like one on the command line.

    Args:
        path: a YAML mapping from flags, without their dashes, to values.
        options: the command's, by their flags.

    Raises:
        UserError: the file cannot be read, is not a YAML mapping, or has a key or value no flag takes.
    """
    known = {flag.removeprefix("--"): option for flag, option in options.items() if flag.startswith("--")}
    known = {name: option for name, option in known.items() if name not in NOT_IN_A_FILE}
    defaults: dict[str, Any] = {}
    for key, value in _read_mapping(path).items():
        name = str(key).replace("_", "-")
        if name not in known:
            raise unknown_name(f"flag in {path}", str(key), sorted(known))
        option = known[name]
        if not option.is_flag:
            defaults[str(option.name)] = _typed(path, option, name, value)
        elif not isinstance(value, bool):
            raise UserError(f"--config {path}: {name} is {value!r}, expected true or false")
        elif value or (f"--{name}" in option.opts and option.secondary_opts):
            # `no-resume: true` is `resume: false`; false says nothing of a switch that has no opposite.
            defaults[str(option.name)] = value and f"--{name}" in option.opts
    return defaults


def _read_mapping(path: Path) -> dict[Any, Any]:
    content = read_yaml(path, "a YAML file of lines such as `seed: 0` (--config)")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"--config {path} holds a {type(content).__name__}, expected lines such as `seed: 0`")
    return content


def _typed(path: Path, option: click.Option, name: str, value: object) -> str | list[str]:
    """The words a user would type behind the flag."""
    if value is None:
        raise UserError(f"--config {path}: {name} has no value: give one or leave the line out")
    items = [_scalar(path, name, item) for item in value] if isinstance(value, list) else [_scalar(path, name, value)]
    return items if option.multiple else ",".join(items)


def _scalar(path: Path, name: str, value: object) -> str:
    if isinstance(value, dict | list | bool) or value is None:
        raise UserError(f"--config {path}: {name} holds {value!r}, expected a text or a number")
    return str(value)
