"""Files: nothing half-written, earlier results untouched, one clear line for every mistake."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from toprl_export.errors import UserError
from toprl_export.files import (
    read_json_versioned,
    sha256_of,
    staged_directory,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)

MARKER = "thing.json"
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def build(target: Path, text: str, overwrite: bool = False) -> None:
    with staged_directory(target, overwrite=overwrite, marker=MARKER) as staging:
        write_text_atomic(staging / MARKER, text)


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
    with pytest.raises(UserError, match="cannot be read"):
        read_json_versioned(tmp_path, "f", 1)


def test_sha256_of_a_file_larger_than_a_buffer(tmp_path: Path):
    content = bytes(range(256)) * 4096
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_staged_directory_appears_only_when_complete(tmp_path: Path):
    target = tmp_path / "deep" / "result"
    with staged_directory(target, overwrite=False, marker=MARKER) as staging:
        write_json_atomic(staging / MARKER, {"n": 1})
        assert not target.exists()
    assert json.loads((target / MARKER).read_text()) == {"n": 1}
    assert os.listdir(target.parent) == ["result"]


def test_staged_directory_fills_an_empty_one(tmp_path: Path):
    target = tmp_path / "result"
    target.mkdir()
    build(target, "new")
    assert (target / MARKER).read_text() == "new"
    assert os.listdir(tmp_path) == ["result"]


def test_staged_directory_follows_a_link_and_keeps_it(tmp_path: Path):
    build(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    build(tmp_path / "link", "new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / MARKER).read_text() == "new"


def test_staged_directory_replaces_an_earlier_result_only_when_told(tmp_path: Path):
    target = tmp_path / "result"
    build(target, "old")
    (target / "leftover").write_text("x")
    with pytest.raises(UserError, match="already holds an earlier result: add --overwrite"):
        build(target, "new")
    assert (target / MARKER).read_text() == "old"
    build(target, "new", overwrite=True)
    assert (target / MARKER).read_text() == "new"
    assert os.listdir(target) == [MARKER]
    assert os.listdir(tmp_path) == ["result"]


def test_staged_directory_never_takes_the_place_of_something_else(tmp_path: Path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_text("x")
    with pytest.raises(UserError, match="holds something else"):
        build(tmp_path / "holiday", "new", overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        build(tmp_path / "holiday" / "photo.jpg", "new", overwrite=True)
    with pytest.raises(UserError, match="is a mount point"):
        build(Path("/"), "new", overwrite=True)
    assert (tmp_path / "holiday" / "photo.jpg").read_text() == "x"


def test_staged_directory_refuses_what_appeared_meanwhile(tmp_path: Path):
    target = tmp_path / "result"
    with (
        pytest.raises(UserError, match="holds something else"),
        staged_directory(target, overwrite=True, marker=MARKER) as staging,
    ):
        write_text_atomic(staging / MARKER, "new")
        target.mkdir()
        (target / "photo.jpg").write_text("x")
    assert os.listdir(tmp_path) == ["result"]
    assert os.listdir(target) == ["photo.jpg"]


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ValueError("bug"), ValueError),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), UserError),
        (SafetensorError("I/O error: No space left on device (os error 28)"), UserError),
        (OSError(errno.EIO, os.strerror(errno.EIO)), OSError),
        (SafetensorError("bad header"), SafetensorError),
    ],
)
def test_failing_block_leaves_the_earlier_result(tmp_path: Path, raised: BaseException, seen: type[BaseException]):
    target = tmp_path / "result"
    build(target, "old")
    with pytest.raises(seen) as caught, staged_directory(target, overwrite=True, marker=MARKER) as staging:
        write_text_atomic(staging / MARKER, "new")
        raise raised
    assert (target / MARKER).read_text() == "old"
    assert os.listdir(tmp_path) == ["result"]
    if seen is UserError:
        assert f"no space left on the disk of {target}" in str(caught.value)


def test_failing_rename_brings_the_earlier_result_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "result"
    build(target, "old")
    rename = os.rename

    def fail_on_second(source: Path, destination: Path) -> None:
        if ".partial-" in source.name:
            raise KeyboardInterrupt
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fail_on_second)
    with pytest.raises(KeyboardInterrupt):
        build(target, "new", overwrite=True)
    assert (target / MARKER).read_text() == "old"
    assert os.listdir(tmp_path) == ["result"]


def test_a_block_that_forgets_its_marker_is_a_bug(tmp_path: Path):
    with (
        pytest.raises(RuntimeError, match=r"did not write thing\.json"),
        staged_directory(tmp_path / "result", overwrite=False, marker=MARKER),
    ):
        pass
    assert os.listdir(tmp_path) == []
