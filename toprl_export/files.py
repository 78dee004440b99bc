"""Writing and reading files so that nothing is ever half-written and every mistake is one clear line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from toprl_export.errors import UserError


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary sibling of ``path``, then rename it; parents are created.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    temporary = _temporary_sibling(path, "partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _write_error(path, error) or error from error
    finally:
        _remove_file(temporary)


def write_text_atomic(path: Path, text: str) -> None:
    """Like :func:`write_bytes_atomic`, for UTF-8 text."""
    write_bytes_atomic(path, text.encode())


def write_json_atomic(path: Path, payload: Mapping[str, Any]) -> None:
    """Like :func:`write_bytes_atomic`, for a JSON object.

    Raises:
        ValueError: ``payload`` holds NaN or an infinity, which JSON cannot say.
    """
    write_text_atomic(path, json.dumps(payload, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json_versioned(path: Path, format: str, version: int) -> dict[str, Any]:
    """The JSON object in ``path``, whose ``format`` and ``version`` are those expected.

    Raises:
        UserError: the file is missing, is not a JSON object, or is of another format or version.
    """
    try:
        payload = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; expected a {format} file there: check the path") from error
    except (NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); expected a {format} file: check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); expected a {format} file: write it again") from error
    if not isinstance(payload, dict) or payload.get("format") != format:
        found = payload.get("format") if isinstance(payload, dict) else type(payload).__name__
        raise UserError(f"{path} has format {found!r}, expected {format!r}: give the path of a {format} file")
    found = payload.get("version")
    if found != version or isinstance(found, bool):  # true equals 1
        raise UserError(
            f"{path} has version {found!r} of {format}, but this release reads version {version}: "
            "create it again or install the release that wrote it"
        )
    return payload


def sha256_of(path: Path) -> str:
    """The SHA-256 digest of a file's content, in lower-case hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def disk_full_error(path: Path, error: Exception) -> UserError | None:
    """The line to show when ``error`` says that the disk of ``path`` is full, else None.

    Libraries that write natively (safetensors) say so only in their message.
    """
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return UserError(f"no space left on the disk of {path}: free some space or choose another place")
    return None


def _write_error(path: Path, error: OSError) -> UserError | None:
    """The line to show for an error met while opening, writing or renaming ``path`` itself."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"{path} cannot be written (permission denied): choose another place")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return UserError(f"{path} cannot be written (a file or directory is in the way): choose another place")
    if error.errno in (errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP):
        return UserError(f"{path} cannot be written ({error.strerror}): choose another place")
    return disk_full_error(path, error)


@contextmanager
def staged_directory(target: Path, overwrite: bool, marker: str) -> Iterator[Path]:
    """Build a directory under a temporary sibling name, which is renamed to ``target`` when the block ends well.

    On an error or Ctrl-C the temporary directory is removed and an earlier result stays untouched.

    Args:
        target: the directory to create, with its parents.
        overwrite: replace an earlier result of the same kind.
        marker: name of the file by which a result of this kind is recognised; the block must write it.

    Raises:
        UserError: ``target`` cannot be taken (see :func:`check_replaceable`), or the disk is full.
    """
    target = target.resolve()
    check_replaceable(target, overwrite, marker)
    staging = _temporary_sibling(target, "partial")
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise _write_error(target, error) or error from error
    try:
        yield staging
        if not (staging / marker).is_file():
            raise RuntimeError(f"the block that built {target} did not write {marker}")
        check_replaceable(target, overwrite, marker)
        _rename_over(staging, target)
    except (OSError, SafetensorError) as error:
        raise disk_full_error(target, error) or error from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _rename_over(staging: Path, target: Path) -> None:
    """Put ``staging`` in the place of the directory ``target``, which comes back if that fails."""
    if not target.exists():
        os.rename(staging, target)
        return
    previous = _temporary_sibling(target, "previous")
    try:
        os.rename(target, previous)
        os.rename(staging, target)
    finally:
        if previous.exists() and not target.exists():
            os.rename(previous, target)
    shutil.rmtree(previous, ignore_errors=True)


def check_replaceable(target: Path, overwrite: bool, marker: str) -> None:
    """Refuse a target directory that a result must not take the place of.

    Raises:
        UserError: ``target`` is a file or a mount point, holds something else than an earlier result
            (recognised by the file ``marker``), or holds one and ``overwrite`` is false.
    """
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


def _temporary_sibling(path: Path, purpose: str) -> Path:
    return path.with_name(f".{path.name}.{purpose}-{secrets.token_hex(4)}")


def _remove_file(path: Path) -> None:
    if path.is_file():
        path.unlink()
