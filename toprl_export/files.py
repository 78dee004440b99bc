"""Writing and reading files so that nothing is ever half-written and every mistake is one clear line."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from toprl_export.errors import UserError

MOST_JSON_BYTES = 16 << 20
"""Parsed JSON takes up to twenty times the memory of its text, and the largest of ours are a few megabytes."""
MOST_YAML_BYTES = 256 << 10
"""What people write by hand; a parser in Python needs seconds for more."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without locks answer."""


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary sibling of ``path``, then rename it; parents are created.

    What killed writers of the same file left is removed; a writer holds a lock on its temporary file, so that nobody
    removes that of a living one.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_partials(path)
        temporary, descriptor = _open_partial(path)
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) or error from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _open_partial(path: Path) -> tuple[Path, int]:
    """A new temporary sibling of ``path``, locked."""
    while True:
        temporary = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try_lock(descriptor)
        if os.fstat(descriptor).st_nlink:  # nobody swept it before it was locked
            return temporary, descriptor
        os.close(descriptor)


def _sweep_partials(path: Path) -> None:
    """Remove temporary siblings of ``path`` whose writer is gone."""
    pattern = re.compile(re.escape(f".{path.name}.partial-") + "[0-9a-f]{8}")
    for entry in list(os.scandir(path.parent)):
        if not pattern.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
            continue
        with suppress(FileNotFoundError, PermissionError):  # another sweeper was faster, or it is another user's
            descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if try_lock(descriptor):
                    os.unlink(entry.path)
            finally:
                os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Lock an open file until it is closed, or the process ends; whether nobody else had it locked.

    Where the file system knows no locks the answer is that nobody had.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


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
    content = read_regular(path, f"a {format} file", MOST_JSON_BYTES)
    try:
        payload = json.loads(content, object_pairs_hook=_without_repetition)
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


def _without_repetition(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are named once each; of two values the parser would take the last without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def is_directory(path: Path) -> bool:
    """Whether ``path`` is a directory or a link to one; names that no file can have are none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_regular(path: Path, expected: str, most_bytes: int) -> bytes:
    """The content of a regular file; pipes and devices, which one might wait for, are never opened.

    Args:
        path: the file, or a link to it.
        expected: what it should be, for messages: "a recipe".
        most_bytes: of a file that is read.

    Raises:
        UserError: it is missing, no regular file, larger, or cannot be read.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{path} is not a regular file; expected {expected}: check the path")
        if found.st_size > most_bytes:
            raise UserError(
                f"{path} has {found.st_size:,} bytes, more than {expected} has ({most_bytes:,} at most): check the path"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; expected {expected} there: check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read ({reason}); expected {expected}: check the path") from error


def read_yaml(path: Path, expected: str) -> Any:
    """What a YAML file holds.

    Raises:
        UserError: see `read_regular`; or it is no YAML, has aliases, or names a key twice in one mapping.
    """
    content = read_regular(path, expected, MOST_YAML_BYTES)
    try:
        return parse_yaml(content.decode())
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML ({error}); expected {expected}: correct it") from error


def parse_yaml(text: str) -> Any:
    """What a YAML text says.

    Raises:
        ValueError: it is no YAML, is nested too deeply, has aliases (of which a few lines make gigabytes), or names a
            key twice in one mapping.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it has an alias (*name), where what it stands for must be written out")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            found = super().construct_mapping(node, deep=deep)
            if len(found) < len(node.value):
                raise yaml.YAMLError(f"a key stands twice in the mapping {str(node.start_mark).strip()}")
            return found

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (ValueError, OverflowError) as error:  # dates and numbers that do not exist
        raise ValueError(f"a value cannot be read: {error}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


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


def write_error(path: Path, error: OSError) -> UserError | None:
    """The line to show for an error met while opening, writing or renaming ``path`` itself, else None."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"{path} cannot be written (permission denied): choose another place")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return UserError(f"{path} cannot be written (a file or directory is in the way): choose another place")
    if error.errno in (errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP):
        return UserError(f"{path} cannot be written ({error.strerror}): choose another place")
    return disk_full_error(path, error)
