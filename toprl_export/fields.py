"""Reading the fields of a JSON object one by one with their types, so that a wrong file is one clear line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toprl_export.errors import UserError


class Fields:
    """One JSON object and where it stands; every getter checks the type.

    Args:
        source: the file, for messages.
        payload: the object.
        inside: where in the file the object stands ("stages[2]"); empty for the whole.

    Attributes:
        payload: the object, as it is.

    Raises:
        UserError: ``payload`` is not an object; and from every getter, a field is missing or of another type.
    """

    def __init__(self, source: Path | str, payload: object, inside: str = "") -> None:
        self._source = source
        self._inside = inside
        if not isinstance(payload, Mapping):
            raise self._wrong(inside, payload, "an object")
        self.payload: Mapping[str, Any] = payload

    def raw(self, name: str) -> Any:
        """Whatever JSON value the field holds."""
        if name not in self.payload:
            raise UserError(f"{self._source} lacks {self._path(name)}: make the file anew")
        return self.payload[name]

    def text(self, name: str) -> str:
        """A string."""
        value = self.raw(name)
        if not isinstance(value, str):
            raise self._wrong(self._path(name), value, "a text")
        return value

    def text_or_none(self, name: str) -> str | None:
        """A string, or None for null."""
        return None if self.raw(name) is None else self.text(name)

    def texts(self, name: str) -> dict[str, str]:
        """An object whose values are strings."""
        inner = self.nested(name)
        return {key: inner.text(key) for key in inner.payload}

    def text_list(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        listed = self._list(name)
        for index, item in enumerate(listed):
            if not isinstance(item, str):
                raise self._wrong(f"{self._path(name)}[{index}]", item, "a text")
        return tuple(listed)

    def flag(self, name: str) -> bool:
        """true or false."""
        value = self.raw(name)
        if not isinstance(value, bool):
            raise self._wrong(self._path(name), value, "true or false")
        return value

    def number(self, name: str) -> float:
        """A number."""
        return self._number(self._path(name), self.raw(name))

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers."""
        return tuple(self._number(f"{self._path(name)}[{i}]", item) for i, item in enumerate(self._list(name)))

    def whole(self, name: str) -> int:
        """An integer."""
        return self._whole(self._path(name), self.raw(name))

    def wholes(self, name: str) -> tuple[int, ...]:
        """A list of integers."""
        return tuple(self._whole(f"{self._path(name)}[{i}]", item) for i, item in enumerate(self._list(name)))

    def nested(self, name: str) -> Fields:
        """An object."""
        return Fields(self._source, self.raw(name), self._path(name))

    def nested_list(self, name: str) -> tuple[Fields, ...]:
        """A list of objects."""
        return tuple(Fields(self._source, item, f"{self._path(name)}[{i}]") for i, item in enumerate(self._list(name)))

    def _list(self, name: str) -> list[Any]:
        value = self.raw(name)
        if not isinstance(value, list):
            raise self._wrong(self._path(name), value, "a list")
        return value

    def _whole(self, path: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(path, value, "a whole number")
        return value

    def _number(self, path: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(path, value, "a number")
        return float(value)

    def _path(self, name: str) -> str:
        return f"{self._inside}.{name}" if self._inside else name

    def _wrong(self, path: str, value: object, expected: str) -> UserError:
        shown = repr(value) if len(repr(value)) <= 40 else repr(value)[:37] + "..."
        return UserError(f"{self._source}: {path or 'the content'} is {shown}, expected {expected}: make the file anew")
