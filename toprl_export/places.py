"""Where results go: checked before work begins, taken by one run at a time, replaced whole, and put right after a kill.

Beside a directory ``T`` stand, for as long as they are needed, ``.T.lock`` (of the run that writes it), ``.T.partial``
(being built, or about to be removed) and ``.T.previous`` (the earlier result, whole, between the two renames that put
the new one in its place). Whoever holds the lock next removes the second and brings the third back.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from toprl_export.errors import UserError, is_utf8
from toprl_export.files import disk_full_error, try_lock, write_error


class BusyError(UserError):
    """Another run writes to a place."""


_PROBE_BYTES = 1 << 16
_ROOM_BELOW = 128
"""Characters that names of files in a result may take."""
_held: dict[Path, int] = {}
"""Places that this process has taken, and by which thread: a lock of the system would not tell threads apart."""
_held_lock = threading.Lock()


def resolved(path: Path) -> Path:
    """``path`` without links.

    Raises:
        UserError: links lead in a circle, or no file can have that name.
    """
    try:
        place = path.resolve()
        if not is_utf8(str(place)):
            raise ValueError("its name is not UTF-8")
        if not place.name:
            raise ValueError("it is a mount point")
        return place
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} is no place to write to ({error}): choose another place") from error


def check_writable(path: Path, needed_bytes: int = 0) -> None:
    """Refuse a file or directory that cannot be created or replaced, before the work whose result it is to hold.

    A small file is written beside it (or where the first missing directory would be) and removed.

    Args:
        path: what is to be written.
        needed_bytes: about how large it will be.

    Raises:
        UserError: its directory cannot be written, a name is too long, a file is in the way, or the disk is full.
    """
    place = resolved(path)
    try:
        above = next(one for one in place.parents if os.path.lexists(one))
        _check_lengths(place, above)
        _write_probe(above, place.name if above == place.parent else "")
        free = shutil.disk_usage(above).free
    except OSError as error:
        raise write_error(path, error) or UserError(
            f"{path} cannot be written ({error.strerror}): choose another place"
        ) from error
    if free < needed_bytes:
        raise UserError(
            f"{path} needs about {needed_bytes / 1e6:,.0f} MB, but its disk has {free / 1e6:,.0f} MB left: free some "
            "space or choose another place"
        )


def check_fillable(directory: Path) -> None:
    """Like `check_writable`, for a directory whose files are written one by one."""
    check_writable(directory / "file")


def _check_lengths(place: Path, above: Path) -> None:
    """Raise the system's own error for what would only be met once directories are made and files written."""
    longest = os.pathconf(above, "PC_NAME_MAX")
    for part in place.relative_to(above).parts:
        if len(os.fsencode(f".{part}.partial-00000000")) > longest:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if len(os.fsencode(place)) + _ROOM_BELOW > os.pathconf(above, "PC_PATH_MAX"):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def _write_probe(directory: Path, name: str) -> None:
    probe = directory / f".{name}.partial-{secrets.token_hex(4)}"
    try:
        with open(probe, "xb") as stream:
            stream.write(bytes(_PROBE_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def taken(target: Path) -> Iterator[Path]:
    """Keep other runs away from ``target`` within the block, and put right what a killed one left there.

    Parents are created. Within the block the same thread may take it again.

    Returns:
        the target, without links.

    Raises:
        BusyError: another run writes there.
        UserError: the place cannot be written.
    """
    place = resolved(target)
    with _held_lock:
        holder = _held.setdefault(place, threading.get_ident())
        inside = place in _locks
    if holder != threading.get_ident():
        raise _busy(target)
    if inside:
        yield place
        return
    try:
        _locks[place] = _lock(target, place)
        _put_right(place)
        yield place
    finally:
        _unlock(place)
        with _held_lock:
            del _held[place]


_locks: dict[Path, int] = {}
"""Open lock files of the places in ``_held``."""


def _lock(target: Path, place: Path) -> int:
    path = _sibling(place, "lock")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            if not try_lock(descriptor):
                os.close(descriptor)
                raise _busy(target)
            if os.fstat(descriptor).st_nlink:  # its holder did not remove it between opening and locking
                return descriptor
            os.close(descriptor)
    except OSError as error:
        raise write_error(target, error) or error from error


def _unlock(place: Path) -> None:
    descriptor = _locks.pop(place, None)
    if descriptor is not None:
        _sibling(place, "lock").unlink(missing_ok=True)
        os.close(descriptor)


def _busy(target: Path) -> BusyError:
    return BusyError(f"{target} is being written by another run: wait for it, or choose another place")


def _put_right(place: Path) -> None:
    """Remove what a killed run was building; bring back what it had moved aside."""
    previous = _sibling(place, "previous")
    if previous.is_dir() and not place.exists():
        os.rename(previous, place)
    _remove(_sibling(place, "partial"))
    _remove(previous)


def _remove(directory: Path) -> None:
    if directory.is_dir() and not directory.is_symlink():
        shutil.rmtree(directory, ignore_errors=True)


def restore_moved_aside(target: Path) -> None:
    """Bring back a result that a run was about to replace when it was killed; for those who read it.

    Nothing happens where ``target`` is there, no such result is, or another run is writing.
    """
    try:
        if os.path.lexists(target) or not _sibling(target.resolve(), "previous").is_dir():
            return
        with taken(target):
            pass
    except (UserError, OSError, RuntimeError, ValueError):
        return  # the reader says what is wrong with the place


@contextmanager
def staged_directory(target: Path, overwrite: bool, marker: str) -> Iterator[Path]:
    """Build a directory under a temporary sibling name, which is renamed to ``target`` when the block ends well.

    On an error, Ctrl-C or SIGTERM the temporary directory is removed and an earlier result stays untouched; what a
    killed run left is removed by the next.

    Args:
        target: the directory to create, with its parents.
        overwrite: replace an earlier result of the same kind.
        marker: name of the file by which a result of this kind is recognised; the block must write it.

    Raises:
        UserError: ``target`` cannot be taken (see :func:`check_replaceable` and :func:`taken`), or the disk is full.
    """
    check_replaceable(resolved(target), overwrite, marker)
    with taken(target) as place:
        check_replaceable(place, overwrite, marker)  # as it is now that nobody else writes it
        staging = _sibling(place, "partial")
        try:
            staging.mkdir()
        except OSError as error:
            raise write_error(target, error) or error from error
        try:
            yield staging
            if not (staging / marker).is_file():
                raise RuntimeError(f"the block that built {target} did not write {marker}")
            check_replaceable(place, overwrite, marker)
            _rename_over(staging, place)
        except (OSError, SafetensorError) as error:
            raise disk_full_error(target, error) or error from error
        finally:
            _remove(staging)


def _rename_over(staging: Path, target: Path) -> None:
    """Put ``staging`` in the place of the directory ``target``, which comes back if that fails."""
    if not target.exists():
        os.rename(staging, target)
        return
    previous = _sibling(target, "previous")
    try:
        os.rename(target, previous)
        os.rename(staging, target)
    finally:
        if previous.exists() and not target.exists():
            os.rename(previous, target)
    # Under the other name, for what is called previous must be whole.
    os.rename(previous, staging)


def check_replaceable(target: Path, overwrite: bool, marker: str) -> None:
    """Refuse a target directory that a result must not take the place of.

    Raises:
        UserError: ``target`` is a file or a mount point, holds something else than an earlier result
            (recognised by the file ``marker``), or holds one and ``overwrite`` is false; or it cannot be read.
    """
    try:
        _check_replaceable(target, overwrite, marker)
    except OSError as error:
        raise write_error(target, error) or error from error


def _check_replaceable(target: Path, overwrite: bool, marker: str) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file; expected a new directory: choose another directory")
    if os.path.ismount(target):
        raise UserError(f"{target} is a mount point and cannot be replaced: choose a directory below it")
    if not any(target.iterdir()):
        return
    if not (target / marker).is_file():
        raise UserError(
            f"{target} holds something else (no {marker} in it), so it is left alone: choose another directory"
        )
    if not overwrite:
        raise UserError(
            f"{target} already holds an earlier result: add --overwrite to replace it or choose another directory"
        )


def _sibling(place: Path, purpose: str) -> Path:
    return place.with_name(f".{place.name}.{purpose}")
