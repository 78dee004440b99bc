"""The one typed reader: frozen dataclasses to JSON objects and back, every value's type checked on the way in.

A file of ours is a dataclass whose ``format`` and ``version`` are fields of one possible value, so that the class alone
says what the file holds: it is what is written, what is read and what `toprl_export.schemas` publishes. A field with a
default may be missing in a file, which is how files stay readable that were written before there was such a field;
unknown fields are refused.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from toprl_export.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

T = TypeVar("T", bound="DataclassInstance")

REMEDY = "write the file again"
_EXPECTED = {
    "sequence": "a list",
    "string": "a text",
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "tuple": "a list",
    "list": "a list",
    "dict": "an object",
    "dataclass": "an object",
    "none": "null",
}
"""What was expected, by the beginning of the name that pydantic gives the error."""


def to_json(value: Any) -> Any:
    """A dataclass as JSON says it: objects, lists, numbers, texts, booleans and null.

    Fields keep their order. A class that is written in another way than field by field has a method ``to_json``.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own_way = getattr(value, "to_json", None)
        return fields_to_json(value) if own_way is None else own_way()
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    return value


def fields_to_json(value: DataclassInstance) -> dict[str, Any]:
    """A dataclass field by field, even where it has a ``to_json`` of its own (which can begin with this)."""
    return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}


def read_fields(kind: type[T], payload: Any, where: str | Path, remedy: str = REMEDY) -> T:
    """The dataclass ``kind`` that ``payload``, parsed JSON or YAML, describes.

    Types are strict as JSON has them: a list reads as a tuple and a whole number as a float, but no number is read from
    a text, no whole number from ``1.0`` and none from ``true``; NaN and infinities are refused.

    Args:
        kind: the dataclass; its own checks are made too.
        payload: what is read.
        where: what is being read, for messages: a path, or words such as "the plan".
        remedy: what to do about a wrong file, for messages.

    Raises:
        UserError: a field is missing, unknown or of another type, or the dataclass refuses its values.
    """
    from pydantic import ValidationError

    _check_states_itself(kind, payload, where, remedy)
    try:
        # By way of JSON text, for only there pydantic reads strictly and yet takes lists for tuples.
        (found,) = _adapter(kind).validate_json(json.dumps([payload], default=str))
    except ValidationError as error:
        raise _refusal(kind, error.errors(include_url=False)[0], where, remedy) from error
    except UserError as error:  # the dataclass' own, which knows nothing of files
        raise UserError(f"{where}: {error}") from error
    except (TypeError, ValueError) as error:  # what YAML can say and JSON cannot, such as a list for a key
        raise UserError(f"{where} holds what JSON cannot say ({error}): {remedy}") from error
    checked: T = found
    return checked


def check_types(where: str, types: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuse values of other types, for what Python code passes; strict as `read_fields`, and as shallow as it needs.

    >>> check_types("train", {"seed": int}, {"seed": True})
    Traceback (most recent call last):
    ...
    toprl_export.errors.UserError: train: seed is True, expected a whole number: correct the call

    Args:
        where: what is called, for messages.
        types: by name; what is not named is not checked.
        values: by name; more than the named ones may be there.

    Raises:
        UserError: names the first value of another type.
    """
    from pydantic import ValidationError

    for name, kind in types.items():
        try:
            _type_adapter(kind).validate_python(values[name])
        except ValidationError as error:
            found = error.errors(include_url=False)[-1]
            shown = repr(values[name])
            shown = shown if len(shown) <= 40 else shown[:37] + "..."
            raise UserError(f"{where}: {name} is {shown}, expected {_expected(found)}: correct the call") from error


def check_field_types(value: DataclassInstance) -> None:
    """`check_types` for a dataclass' own fields, to begin its ``__post_init__`` with.

    Raises:
        UserError: names the first field of another type.
    """
    check_types(type(value).__name__, get_type_hints(type(value)), vars(value))


def read_file(kind: type[T], path: Path, remedy: str = REMEDY) -> T:
    """Read a JSON file of the format and version that ``kind`` states.

    Raises:
        UserError: it is missing, is no JSON, is of another format or version, or see `read_fields`.
    """
    return read_fields(kind, read_header(kind, path), path, remedy)


def read_header(kind: type[T], path: Path) -> dict[str, Any]:
    """The JSON object in ``path``, of which only format and version are checked to be those of ``kind``.

    Raises:
        UserError: it is missing, is no JSON, or is of another format or version.
    """
    from toprl_export.files import read_json_versioned

    stated = {field.name: field.default for field in dataclasses.fields(kind)}
    return read_json_versioned(path, str(stated["format"]), int(str(stated["version"])))


def json_schema(kind: type[T]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of what `read_fields` takes for ``kind``."""
    schema = _adapter(kind).json_schema()
    types = schema["$defs"]
    described: dict[str, Any] = types.pop(schema["items"]["$ref"].rpartition("/")[2])
    return described | ({"$defs": types} if types else {})


def _check_states_itself(kind: type[Any], payload: Any, where: str | Path, remedy: str) -> None:
    """Format and version have defaults for those who write, but one who reads must not guess them."""
    stated = {field.name for field in dataclasses.fields(kind)} & {"format", "version"}
    lacking = sorted(stated - payload.keys()) if isinstance(payload, Mapping) else []
    if lacking:
        raise UserError(f"{where} lacks {lacking[0]}: {remedy}")


@cache
def _type_adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, InstanceOf, TypeAdapter

    if dataclasses.is_dataclass(kind):
        return TypeAdapter(InstanceOf[kind])  # pydantic would make one of a mapping
    return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True))


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[list[Any]]:
    from pydantic import ConfigDict, TypeAdapter

    # A list of it: pydantic takes a configuration for what is inside, but none for a dataclass itself.
    several = list[kind]  # type: ignore[valid-type]  # a variable is no type to mypy
    return TypeAdapter(several, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))


def _refusal(kind: type[Any], error: ErrorDetails, where: str | Path, remedy: str) -> UserError:
    """One line for the first thing that was wrong."""
    path = _path(error["loc"][1:])
    if (
        error["type"] == "json_invalid"
    ):  # what Python's parser takes and pydantic's does not: lone surrogates, deep nests
        return UserError(f"{where} is not valid JSON ({error['ctx']['error']}): {remedy}")
    if error["type"] == "missing":
        return UserError(f"{where} lacks {path}: {remedy}")
    if error["type"] == "unexpected_keyword_argument":
        return UserError(f"{where} has the unknown field {path}{_meant(kind, path)}: {remedy}")
    value = repr(error["input"])
    shown = value if len(value) <= 40 else value[:37] + "..."
    return UserError(f"{where}: {path or 'the content'} is {shown}, expected {_expected(error)}: {remedy}")


def _expected(error: ErrorDetails) -> str:
    limits = error.get("ctx", {})
    if error["type"] == "literal_error":
        return str(limits["expected"])
    if error["type"] == "too_long":
        return f"at most {limits['max_length']} items"
    return _EXPECTED.get(error["type"].partition("_")[0], error["msg"])


def _meant(kind: type[Any], path: str) -> str:
    """``; did you mean 'settings'?``, empty where no field of ``kind`` or of what it holds is alike."""
    schema = json_schema(kind)
    known = {name for one in (schema, *schema.get("$defs", {}).values()) for name in one.get("properties", {})}
    found = difflib.get_close_matches(path.rpartition(".")[2], sorted(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _path(location: tuple[int | str, ...]) -> str:
    """``stages[2].site``."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return "".join(steps).removeprefix(".")
