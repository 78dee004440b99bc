"""Dataclasses to JSON and back, with every value's type checked on the way in."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from toprl_export.errors import UserError

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """A dataclass as what JSON can say: objects, lists, numbers, texts, booleans and null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    return value


def from_json(kind: type[T], payload: Any, where: str) -> T:
    """The dataclass ``kind`` that ``payload`` describes.

    Args:
        where: what is being read, for messages ("report.json").

    Raises:
        UserError: a field is missing, unknown or of another type.
    """
    loaded: T = _read(kind, payload, where)
    return loaded


def _read(kind: Any, payload: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _read_dataclass(kind, payload, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        if payload is None:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _read(inner, payload, where)
    if origin is tuple and isinstance(payload, list):
        kinds = [arguments[0]] * len(payload) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(payload):
            return tuple(_read(*item, f"{where}[{at}]") for at, item in enumerate(zip(kinds, payload, strict=True)))
    if origin is dict and isinstance(payload, dict):
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in payload.items()}
    if origin is Literal and payload in arguments:
        return payload
    if kind is float and type(payload) in (int, float):
        return float(payload)
    if kind in (int, str, bool) and type(payload) is kind:
        return payload
    raise UserError(f"{where} is {payload!r}, expected {_named(kind)}: write the file anew")


def _read_dataclass(kind: Any, payload: Any, where: str) -> Any:
    fields = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(payload, dict) or set(payload) != fields:
        found = ", ".join(sorted(payload)) if isinstance(payload, dict) else type(payload).__name__
        raise UserError(f"{where} holds {found}, expected {', '.join(sorted(fields))}: write the file anew")
    hints = get_type_hints(kind)
    return kind(**{name: _read(hints[name], payload[name], f"{where}.{name}") for name in fields})


def _named(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
