"""The typed reader: what is written comes back, and whatever is wrong is one line that names file, place and remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toprl_export.errors import UserError
from toprl_export.fields import REMEDY, json_schema, read_fields, read_file, read_header, to_json
from toprl_export.files import write_json_atomic

texts = st.text(st.characters(codec="utf-8"), max_size=8)


@dataclass(frozen=True)
class Inner:
    count: int
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.count < 0:
            raise UserError(f"count is {self.count}, expected at least 0")


@dataclass(frozen=True)
class Outer:
    format: Literal["toprl-export/test"] = field(default="toprl-export/test", kw_only=True)
    version: Literal[2] = field(default=2, kw_only=True)
    name: str
    flag: bool
    pair: tuple[float, float]
    inner: tuple[Inner, ...]
    by_name: Mapping[str, float]
    kind: Literal["a", "b"]
    perhaps: Inner | None
    anything: dict[str, Any]


GOOD = Outer("n", True, (1.0, 2.5), (Inner(1), Inner(2, 1.0)), {"x": 0.25}, "a", None, {"deep": [1, None, {"y": "z"}]})


def changed(**changes: object) -> dict[str, Any]:
    return {**to_json(GOOD), **changes}


def test_what_is_written_comes_back_in_the_order_of_the_fields():
    written = to_json(GOOD)
    assert list(written)[:3] == ["format", "version", "name"]
    assert written["inner"] == [{"count": 1, "share": 0.5}, {"count": 2, "share": 1.0}]
    assert read_fields(Outer, json.loads(json.dumps(written)), "x") == GOOD


@given(
    st.builds(
        Outer,
        name=texts,
        flag=st.booleans(),
        pair=st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.integers(-9, 9).map(float)),
        inner=st.lists(st.builds(Inner, st.integers(0, 2**70), st.floats(0, 1)), max_size=3).map(tuple),
        by_name=st.dictionaries(texts, st.floats(0, 1), max_size=2),
        kind=st.sampled_from(["a", "b"]),
        perhaps=st.none() | st.builds(Inner, st.integers(0, 9)),
        anything=st.dictionaries(texts, st.none() | st.booleans() | st.lists(st.integers(), max_size=2), max_size=2),
    )
)
def test_round_trip(outer: Outer):
    assert read_fields(Outer, json.loads(json.dumps(to_json(outer))), "x") == outer


def test_types_as_json_has_them():
    assert read_fields(Outer, changed(pair=[1, 2]), "x").pair == (1.0, 2.0)
    assert isinstance(read_fields(Outer, changed(pair=[1, 2]), "x").pair[0], float)
    assert read_fields(Outer, changed(inner=[{"count": 3}]), "x").inner == (Inner(3, 0.5),)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ([1], f"f.json: the content is [1], expected an object: {REMEDY}"),
        (changed(name=3), f"f.json: name is 3, expected a text: {REMEDY}"),
        (changed(flag=1), f"f.json: flag is 1, expected true or false: {REMEDY}"),
        (
            changed(inner=[{"count": True}]),
            f"f.json: inner[0].count is True, expected a whole number: {REMEDY}",
        ),
        (
            changed(inner=[{"count": 1.0}]),
            f"f.json: inner[0].count is 1.0, expected a whole number: {REMEDY}",
        ),
        (
            changed(inner=[{"count": "1"}]),
            f"f.json: inner[0].count is '1', expected a whole number: {REMEDY}",
        ),
        (changed(inner=[{}]), f"f.json lacks inner[0].count: {REMEDY}"),
        (changed(inner=[3]), f"f.json: inner[0] is 3, expected an object: {REMEDY}"),
        (changed(inner="all"), f"f.json: inner is 'all', expected a list: {REMEDY}"),
        (changed(inner=[{"count": -1}]), "f.json: count is -1, expected at least 0"),
        (changed(pair=[1]), f"f.json lacks pair[1]: {REMEDY}"),
        (changed(pair=[1, 2, 3]), f"f.json: pair is [1, 2, 3], expected at most 2 items: {REMEDY}"),
        (changed(pair=[1, True]), f"f.json: pair[1] is True, expected a number: {REMEDY}"),
        (changed(by_name={"x": None}), f"f.json: by_name.x is None, expected a number: {REMEDY}"),
        (
            changed(by_name={"x": float("nan")}),
            f"f.json: by_name.x is nan, expected a finite number: {REMEDY}",
        ),
        (changed(by_name=[]), f"f.json: by_name is [], expected an object: {REMEDY}"),
        (changed(kind="c"), f"f.json: kind is 'c', expected 'a' or 'b': {REMEDY}"),
        (changed(version=3), f"f.json: version is 3, expected 2: {REMEDY}"),
        ({name: one for name, one in changed().items() if name != "format"}, f"f.json lacks format: {REMEDY}"),
        ({name: one for name, one in changed().items() if name != "version"}, f"f.json lacks version: {REMEDY}"),
        (changed(perhaps="x"), f"f.json: perhaps is 'x', expected an object: {REMEDY}"),
        (changed(nam="x"), f"f.json has the unknown field nam; did you mean 'name'?: {REMEDY}"),
        (
            changed(inner=[{"count": 1, "zzz": 2}]),
            f"f.json has the unknown field inner[0].zzz: {REMEDY}",
        ),
        (changed(name=["a" * 50]), f"f.json: name is ['{'a' * 35}..., expected a text: {REMEDY}"),
    ],
)
def test_what_is_wrong_is_one_line(payload: object, message: str):
    with pytest.raises(UserError) as caught:
        read_fields(Outer, payload, Path("f.json"))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("key", "message"), [((1, 2), "holds what JSON cannot say"), ("\ud800", r"is not valid JSON \(")]
)
def test_what_only_yaml_or_python_can_say(key: Any, message: str):
    with pytest.raises(UserError, match=rf"^x\.yaml {message}"):
        read_fields(Outer, changed(anything={key: 1}), "x.yaml")


def test_a_file_says_what_it_is_and_how_to_mend_it(tmp_path: Path):
    path = tmp_path / "test.json"
    write_json_atomic(path, to_json(GOOD))
    assert read_file(Outer, path) == GOOD
    assert read_header(Outer, path) == to_json(GOOD)
    for change, message in (
        ({"format": "other"}, "has format 'other', expected 'toprl-export/test'"),
        ({"version": 1}, "has version 1 of toprl-export/test, but this release reads version 2"),
        ({"name": 1}, "name is 1, expected a text: ask again"),
    ):
        write_json_atomic(path, changed(**change))
        with pytest.raises(UserError, match=message):
            read_file(Outer, path, "ask again")


def test_a_class_may_be_written_in_its_own_way():
    @dataclass(frozen=True)
    class Quiet(Inner):
        def to_json(self) -> dict[str, Any]:
            return {"count": self.count}

    assert to_json({"one": (Quiet(1),)}) == {"one": [{"count": 1}]}


def test_the_schema_states_format_version_and_that_nothing_else_is_allowed():
    schema = json_schema(Outer)
    assert schema["properties"]["format"]["const"] == "toprl-export/test"
    assert schema["properties"]["version"]["const"] == 2
    assert schema["additionalProperties"] is schema["$defs"]["Inner"]["additionalProperties"] is False
    assert schema["$defs"]["Inner"]["required"] == ["count"]
    assert replace(GOOD, name="m") != GOOD
