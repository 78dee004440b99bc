"""A table's cells: independent pieces of work, done in parallel processes and each kept in a file of its own."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from toprl_export.errors import UserError
from toprl_export.fields import read_file, to_json
from toprl_export.files import write_json_atomic
from toprl_export.progress import Progress

_ANSWERING = ("models", "pruning", "runtime", "tasks")

Result = Mapping[str, Any]
"""What a cell comes to: a JSON object."""


@cache
def answered_by() -> Mapping[str, str]:
    """What answers depend on besides model, questions and pruning: versions of PyTorch and transformers, and a SHA-256
    of this package's own code that answers."""
    package = Path(__file__).parents[1]
    files = [package / "evaluation" / "answering.py", package / "seeding.py"]
    files += [file for folder in _ANSWERING for file in sorted((package / folder).rglob("*.py"))]
    code = hashlib.sha256()
    for file in files:
        code.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes())
    return {"code": code.hexdigest(), **{name: metadata.version(name) for name in ("torch", "transformers")}}


class Cell(Protocol):
    """A piece of work that depends on nothing but what it says of itself, and can be sent to another process."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that the result depends on, as a JSON object: cells of one identity have one result."""
        ...


C = TypeVar("C", bound=Cell)
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class KeptCell:
    """A cell's file: what the cell says of itself, and its result."""

    format: Literal["toprl-export/cell"] = field(default="toprl-export/cell", kw_only=True)
    version: Literal[1] = field(default=1, kw_only=True)
    identity: dict[str, Any]
    result: dict[str, Any]


@dataclass(frozen=True)
class CellStore:
    """The results that a directory holds: one file a cell, named by the digest of its identity."""

    directory: Path

    def load(self, cell: Cell) -> Result | None:
        """The result of ``cell``, or None where it has not been computed.

        Raises:
            UserError: its file is damaged or another release's.
        """
        path = self._path(cell)
        if not path.is_file():
            return None
        kept = read_file(KeptCell, path, "delete it to have it computed again")
        if kept.identity != _plain(cell.identity):
            raise UserError(f"{path} does not hold the result that its name says: delete it to have it computed again")
        return kept.result

    def save(self, cell: Cell, result: Result) -> None:
        """Keep a result; the file appears whole or not at all."""
        write_json_atomic(self._path(cell), to_json(KeptCell(_plain(cell.identity), dict(result))))

    def _path(self, cell: Cell) -> Path:
        return self.directory / f"{digest(cell)}.json"


def digest(cell: Cell) -> str:
    """The first 32 hexadecimal digits of the SHA-256 of the cell's identity."""
    return hashlib.sha256(json.dumps(_plain(cell.identity), sort_keys=True).encode()).hexdigest()[:32]


def _plain(identity: Mapping[str, Any]) -> Any:
    """The identity as JSON gives it back (tuples as lists), so that what was read can be compared with it."""
    return json.loads(json.dumps(identity, allow_nan=False))


def compute_cells(
    cells: Sequence[C], store: CellStore, open_worker: Callable[[], Callable[[C], Result]], jobs: int, what: str
) -> list[Result]:
    """The results of ``cells`` in order; only what the store lacks is computed, each cell kept as soon as it is done.

    Args:
        cells: several of one identity are computed once.
        store: where results are kept; Ctrl-C or an error loses no finished cell.
        open_worker: see `in_parallel`.
        jobs: processes.
        what: the progress bar's name.

    Raises:
        UserError: a cell's own, a damaged file, or a process that died.
    """
    results = {name: store.load(cell) for name, cell in {digest(cell): cell for cell in cells}.items()}
    missing = {digest(cell): cell for cell in cells if results[digest(cell)] is None}
    with (
        Progress(what, len(missing), "cell") as bar,
        closing(in_parallel(list(missing.values()), open_worker, jobs)) as done,
    ):
        for cell, result in done:
            store.save(cell, result)
            results[digest(cell)] = result
            bar.update()
    found = [results[digest(cell)] for cell in cells]
    return [result for result in found if result is not None]


def in_parallel(
    items: Sequence[T], open_worker: Callable[[], Callable[[T], R]], jobs: int
) -> Generator[tuple[T, R], None, None]:
    """Every item with its result, as they are done, each by one torch thread, so that no figure depends on ``jobs``.

    With one job, in this process and in order. With more, in spawned processes, which end when the generator is closed
    or this process ends, however it does.

    Args:
        items: what to work on.
        open_worker: makes the function that does one item; called once in each process (with several jobs it is
            pickled and hashed, as a frozen dataclass can be).
        jobs: processes, at least 1.

    Raises:
        UserError: an item's own, or a process died.
    """
    if jobs == 1 or len(items) <= 1:
        yield from _in_this_process(items, open_worker)
        return
    others = set(active_children())
    pool = ProcessPoolExecutor(min(jobs, len(items)), get_context("spawn"), _begin_process)
    finished = False
    try:
        futures = {pool.submit(_work, open_worker, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future.result()
        finished = True
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died, perhaps for want of memory; what was finished is kept: "
            "repeat the command with fewer --jobs"
        ) from error
    finally:
        pool.shutdown(wait=finished, cancel_futures=True)
        if not finished:
            for process in set(active_children()) - others:
                process.terminate()


def _in_this_process(
    items: Sequence[T], open_worker: Callable[[], Callable[[T], R]]
) -> Generator[tuple[T, R], None, None]:
    if not items:
        return
    with _one_torch_thread():
        work = open_worker()
        for item in items:
            yield item, work(item)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _begin_process() -> None:
    import torch

    # The default ends the process without a traceback on Ctrl-C, which a terminal sends to all of them. Where the
    # parent ignores it, as in the background of a script, so does this one.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """Wait for the parent's end and follow it: killed, it cannot tell its workers, which would wait for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(open_worker: Callable[[], Callable[[T], R]], item: T) -> R:
    done: R = _opened(open_worker)(item)
    return done


@cache
def _opened(open_worker: Callable[[], Callable[[T], R]]) -> Callable[[T], R]:
    """What ``open_worker`` makes, once in a process."""
    return open_worker()
