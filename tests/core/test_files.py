"""Files: nothing half-written, earlier results untouched, one clear line for every mistake."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toprl_export.errors import UserError
from toprl_export.files import (
    MOST_YAML_BYTES,
    read_json_versioned,
    read_yaml,
    sha256_of,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def fail_with(code: int):
    def failing(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return failing


def test_write_creates_parents_and_replaces(tmp_path: Path):
    path = tmp_path / "a" / "b.txt"
    write_text_atomic(path, "één")
    write_bytes_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["b.txt"]


def test_written_file_has_ordinary_permissions(tmp_path: Path):
    write_text_atomic(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str):
    path = tmp_path / "file"
    path.write_text("earlier")
    monkeypatch.setattr(os, step, fail_with(errno.ENOSPC))
    with pytest.raises(UserError, match=r"no space left on the disk of .*file: free some space"):
        write_text_atomic(path, "later")
    assert path.read_text() == "earlier"
    assert os.listdir(tmp_path) == ["file"]


def test_interrupt_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "file"
    path.write_text("earlier")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomic(path, "later")
    assert path.read_text() == "earlier"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_in_the_way_is_named(tmp_path: Path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(UserError, match="a file or directory is in the way"):
        write_text_atomic(tmp_path / "taken" / "below", "y")


def test_a_bug_is_not_called_a_users_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "replace", fail_with(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        write_text_atomic(tmp_path / "file", "x")


@given(st.dictionaries(st.text(), json_values))
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, content: dict[str, object]):
    path = tmp_path_factory.mktemp("json") / "file.json"
    payload = {**content, "format": "toprl-export/test", "version": 3}
    write_json_atomic(path, payload)
    assert read_json_versioned(path, "toprl-export/test", 3) == payload


def test_json_refuses_what_json_cannot_say(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomic(tmp_path / "file.json", {"value": float("nan")})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "is not valid JSON"),
        ("\xff", "is not valid JSON"),
        ("[1]", "has format 'list', expected 'f'"),
        ('{"version": 1}', "has format None, expected 'f'"),
        ('{"format": "g", "version": 1}', "has format 'g', expected 'f'"),
        ('{"format": "f"}', "has version None of f, but this release reads version 1"),
        ('{"format": "f", "version": 2}', "has version 2 of f, but this release reads version 1"),
        ('{"format": "f", "version": true}', "has version True of f, but this release reads version 1"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_read_json_says_what_is_wrong(tmp_path: Path, content: str, expected: str):
    path = tmp_path / "file.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        read_json_versioned(path, "f", 1)
    assert expected in str(caught.value) and str(path) in str(caught.value)


def test_read_json_of_a_missing_file_or_a_directory(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        read_json_versioned(tmp_path / "gone.json", "f", 1)
    with pytest.raises(UserError, match="is not a regular file"):
        read_json_versioned(tmp_path, "f", 1)


def test_sha256_of_a_file_larger_than_a_buffer(tmp_path: Path):
    content = bytes(range(256)) * 4096
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: &x [1]\nb: *x", "has an alias"),
        ("a: &x [*x]", "has an alias"),
        ("a: 1\na: 2", "a key stands twice"),
        ("a: 2026-99-99", "a value cannot be read"),
        ("[" * 3000, "not valid YAML"),
        ("a: !!python/object:os.system {}", "not valid YAML"),
        ("\xff", "not valid YAML"),
        ("x" * (MOST_YAML_BYTES + 1), "bytes, more than a recipe has"),
    ],
)
def test_yaml_that_is_wrong_is_refused_in_one_line(tmp_path: Path, content: str, expected: str):
    path = tmp_path / "file.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=expected) as caught:
        read_yaml(path, "a recipe")
    assert "\n" not in str(caught.value)


def test_yaml_is_read(tmp_path: Path):
    (tmp_path / "file.yaml").write_text("a: {b: [1, 2.5, x]}\n")
    assert read_yaml(tmp_path / "file.yaml", "a recipe") == {"a": {"b": [1, 2.5, "x"]}}


def test_pipes_devices_and_huge_files_are_not_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "huge", "wb") as stream:
        stream.truncate(1 << 40)
    for path, expected in (
        (tmp_path / "pipe", "is not a regular file"),
        (Path("/dev/zero"), "is not a regular file"),
        (tmp_path / "huge", "more than a f file has"),
        (tmp_path / ("x" * 300), "cannot be read"),
        (Path("a\0b"), "cannot be read"),
    ):
        with pytest.raises(UserError, match=expected):
            read_json_versioned(path, "f", 1)


def test_json_with_a_key_twice_is_refused(tmp_path: Path):
    (tmp_path / "file.json").write_text('{"format": "f", "version": 1, "a": 1, "a": 2}')
    with pytest.raises(UserError, match="the key 'a' stands twice"):
        read_json_versioned(tmp_path / "file.json", "f", 1)
