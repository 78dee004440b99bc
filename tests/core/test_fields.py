"""Fields: every getter names the file and the place of what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from toprl_export.errors import UserError
from toprl_export.fields import Fields

CONTENT = {
    "text": "a",
    "null": None,
    "whole": 3,
    "true": True,
    "half": 0.5,
    "wholes": [1, 2],
    "mixed": [1, "x"],
    "texts": ["a", "b"],
    "inner": {"a": "b", "deep": [{"n": 1}, 2]},
}
FIELDS = Fields(Path("file.json"), CONTENT)


def test_right_values():
    assert (FIELDS.text("text"), FIELDS.whole("whole"), FIELDS.wholes("wholes")) == ("a", 3, (1, 2))
    assert (FIELDS.text_or_none("null"), FIELDS.text_or_none("text")) == (None, "a")
    assert (FIELDS.text_list("texts"), FIELDS.flag("true")) == (("a", "b"), True)
    assert (FIELDS.number("half"), FIELDS.number("whole"), FIELDS.numbers("wholes")) == (0.5, 3.0, (1.0, 2.0))
    assert FIELDS.nested("inner").text("a") == "b"
    assert Fields("x", {"m": {"a": "b"}}).texts("m") == {"a": "b"}


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda: FIELDS.text("gone"), "file.json lacks gone"),
        (lambda: FIELDS.text("whole"), "whole is 3, expected a text"),
        (lambda: FIELDS.text_or_none("whole"), "whole is 3, expected a text"),
        (lambda: FIELDS.whole("true"), "true is True, expected a whole number"),
        (lambda: FIELDS.whole("half"), "half is 0.5, expected a whole number"),
        (lambda: FIELDS.number("true"), "true is True, expected a number"),
        (lambda: FIELDS.wholes("mixed"), "mixed[1] is 'x', expected a whole number"),
        (lambda: FIELDS.numbers("mixed"), "mixed[1] is 'x', expected a number"),
        (lambda: FIELDS.wholes("text"), "text is 'a', expected a list"),
        (lambda: FIELDS.text_list("mixed"), "mixed[0] is 1, expected a text"),
        (lambda: FIELDS.flag("whole"), "whole is 3, expected true or false"),
        (lambda: FIELDS.nested("text"), "text is 'a', expected an object"),
        (lambda: FIELDS.nested("inner").nested_list("deep"), "inner.deep[1] is 2, expected an object"),
        (lambda: FIELDS.texts("inner"), "inner.deep is [{'n': 1}, 2], expected a text"),
        (lambda: Fields("f", [1]), "f: the content is [1], expected an object"),
    ],
)
def test_wrong_values(read: Callable[[], object], expected: str):
    with pytest.raises(UserError) as caught:
        read()
    assert expected in str(caught.value)
