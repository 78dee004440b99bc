"""Places: nothing half-written, one run at a time, every mistake found before work begins, a kill put right."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from safetensors import SafetensorError

from toprl_export.errors import UserError
from toprl_export.files import write_json_atomic, write_text_atomic
from toprl_export.places import check_fillable, check_writable, staged_directory, taken

MARKER = "thing.json"


def build(target: Path, text: str, overwrite: bool = False) -> None:
    with staged_directory(target, overwrite=overwrite, marker=MARKER) as staging:
        write_text_atomic(staging / MARKER, text)


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
        if ".partial" in source.name:
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


def held_elsewhere(target: Path, then: str) -> subprocess.Popen[str]:
    """Another process that takes ``target``, says so, and does ``then``."""
    code = f"""
import pathlib, time, os
from toprl_export.places import taken, staged_directory
with taken(pathlib.Path({str(target)!r})):
    print("taken", flush=True)
    {then}
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "taken\n"
    return process


def test_a_second_run_into_one_place_is_refused_at_once_and_free_after_a_kill(tmp_path: Path):
    target = tmp_path / "result"
    with held_elsewhere(target, "time.sleep(60)") as other:
        with pytest.raises(UserError, match="is being written by another run"):
            build(target, "mine")
        build(tmp_path / "another", "mine")
        other.send_signal(signal.SIGKILL)
    assert (tmp_path / ".result.lock").exists()
    build(target, "mine")
    assert sorted(os.listdir(tmp_path)) == ["another", "result"]


def test_two_threads_are_two_runs_and_one_thread_may_take_a_place_again(tmp_path: Path):
    refused: list[str] = []

    def other() -> None:
        try:
            build(tmp_path / "result", "theirs")
        except UserError as error:
            refused.append(str(error))

    with taken(tmp_path / "result"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        build(tmp_path / "result", "mine")
    assert len(refused) == 1 and "another run" in refused[0]
    assert os.listdir(tmp_path) == ["result"]


@pytest.mark.parametrize("moment", ["building", "between the renames", "removing the earlier"])
def test_what_a_kill_leaves_is_put_right_by_the_next_run(tmp_path: Path, moment: str):
    """A kill leaves one of these states; after each the earlier result is there whole, and nothing else is."""
    target = tmp_path / "result"
    build(target, "old")
    partial = tmp_path / ".result.partial"
    partial.mkdir()
    (partial / MARKER).write_text("new")
    (tmp_path / ".result.lock").touch()
    if moment == "between the renames":
        target.rename(tmp_path / ".result.previous")
    if moment == "removing the earlier":
        (partial / MARKER).unlink()
    with taken(target):
        assert (target / MARKER).read_text() == "old"
        assert sorted(os.listdir(tmp_path)) == [".result.lock", "result"]
    assert os.listdir(tmp_path) == ["result"]


def test_leftovers_of_files_are_removed_unless_their_writer_lives(tmp_path: Path):
    import fcntl

    (tmp_path / ".file.partial-00000000").touch()
    (tmp_path / ".other.partial-00000000").touch()
    living = open(tmp_path / ".file.partial-11111111", "w")  # noqa: SIM115 (closed below, to end the lock)
    fcntl.flock(living, fcntl.LOCK_EX)
    write_text_atomic(tmp_path / "file", "x")
    assert sorted(os.listdir(tmp_path)) == [".file.partial-11111111", ".other.partial-00000000", "file"]
    living.close()
    write_text_atomic(tmp_path / "file", "x")
    assert sorted(os.listdir(tmp_path)) == [".other.partial-00000000", "file"]


def loop(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


def under_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "result"


IMPOSSIBLE = {
    "too long a name": lambda folder: folder / ("x" * 300),
    "too long with what stands beside it": lambda folder: folder / ("x" * 250),
    "too long a missing parent": lambda folder: folder / ("x" * 300) / "result",
    "too long a path": lambda folder: folder.joinpath(*["x" * 100] * 40),
    "below a file": under_a_file,
    "below proc": lambda folder: Path("/proc/result"),
    "a link to itself": loop,
    "a null byte": lambda folder: folder / "a\0b",
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_impossible_places_are_refused_before_work_and_nothing_is_left(tmp_path: Path, kind: str):
    place = IMPOSSIBLE[kind](tmp_path)
    before = sorted(os.listdir(tmp_path))
    for check in (check_writable, check_fillable):
        with pytest.raises(UserError) as caught:
            check(place)
        assert "\n" not in str(caught.value) and "choose another place" in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_the_root_is_no_result():
    with pytest.raises(UserError, match="is a mount point"):
        check_writable(Path("/"))


def test_possible_places_are_checked_without_a_trace(tmp_path: Path):
    for place in (tmp_path / "new", tmp_path / "deep" / "new", tmp_path):
        check_writable(place)
        check_fillable(place)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_probe_that_cannot_be_written_refuses_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"permission denied|no space left"):
        check_writable(tmp_path / "result")
    assert os.listdir(tmp_path) == []


def test_a_result_larger_than_the_disk_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"needs about .* MB, but its disk has"):
        check_writable(tmp_path / "result", needed_bytes=1 << 60)
