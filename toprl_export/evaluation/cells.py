"""Cells of a table: independent pieces of work, done in parallel processes, each kept in a file of its own."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from toprl_export.errors import UserError
from toprl_export.evaluation.machine import torch_threads
from toprl_export.fields import read_file, to_json
from toprl_export.files import write_json_atomic
from toprl_export.progress import Progress

Result = Mapping[str, Any]
"""The result of a cell: a JSON object."""


@cache
def answered_by(worker: str) -> Mapping[str, str]:
    """What answers depend on besides model, questions and pruning, as part of a cell's identity.

    Args:
        worker: the module that answers a cell's questions.

    Returns:
        versions of PyTorch and transformers, and a SHA-256 of the code of this package that ``worker`` can reach.
    """
    code = code_digest(worker, Path(__file__).parents[1])
    return {"code": code, **{name: metadata.version(name) for name in ("torch", "transformers")}}


def code_digest(worker: str, package: Path) -> str:
    """SHA-256 of the names and sources of all modules that ``worker`` can reach; arguments as in `reached_modules`."""
    code = hashlib.sha256()
    for name, file in sorted(reached_modules(worker, package).items()):
        code.update(f"{name}\n".encode() + file.read_bytes())
    return code.hexdigest()


def reached_modules(worker: str, package: Path) -> dict[str, Path]:
    """The modules of a package that running ``worker`` may load, and their files.

    An import counts wherever it stands, but for those under ``TYPE_CHECKING``, and so does a string that names a
    module, for registries import by such names. With a module Python runs the packages around it; of these only what
    they import at once counts, not what their functions offer to users.

    Args:
        worker: the module's name, such as ``toprl_export.analysis.study``.
        package: the directory of the root package.
    """
    found: dict[str, Path] = {}
    seen: set[tuple[str, bool]] = set()
    waiting = [(worker, True)]
    while waiting:
        name, with_lazy = waiting.pop()
        file = _module_file(name, package)
        if file is None or (name, with_lazy) in seen:
            continue
        seen.add((name, with_lazy))
        found[name] = file
        waiting += [(other, True) for other in _named_modules(ast.parse(file.read_bytes()), with_lazy, package)]
        # A package that is imported by name later counts in full then: hence ``seen`` tells the two apart.
        waiting.append((name.rpartition(".")[0], False))
    return found


def _module_file(name: str, package: Path) -> Path | None:
    """The file of a module; None for what is no module of the package, such as a class in one."""
    root, *parts = name.split(".")
    if root != package.name or not all(part.isidentifier() for part in parts):
        return None
    path = package.joinpath(*parts)
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _named_modules(code: ast.AST, with_lazy: bool, package: Path) -> Iterator[str]:
    """What code may import, by name; imports are absolute, ruff sees to that."""
    if isinstance(code, ast.Import):
        yield from (alias.name for alias in code.names)
    elif isinstance(code, ast.ImportFrom):
        for alias in code.names:
            inner = f"{code.module}.{alias.name}"
            yield inner if _module_file(inner, package) else str(code.module)
    elif isinstance(code, ast.Constant) and isinstance(code.value, str) and with_lazy:
        yield code.value.partition(":")[0]  # as registries have it, "package.module:attribute"
    elif with_lazy or not isinstance(code, ast.FunctionDef | ast.AsyncFunctionDef):
        for part in _run_parts(code):
            yield from _named_modules(part, with_lazy, package)


def _run_parts(code: ast.AST) -> Iterable[ast.AST]:
    if isinstance(code, ast.If) and ast.unparse(code.test) == "TYPE_CHECKING":
        return code.orelse
    return ast.iter_child_nodes(code)


class Cell(Protocol):
    """A piece of work whose result depends on nothing but its identity, and which can be sent to another process."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that the result depends on, as a JSON object: equal identities have equal results."""
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
    """Results on disk: one file for each cell, named by the digest of its identity."""

    directory: Path

    def load(self, cell: Cell) -> Result | None:
        """The result of ``cell``, or None where it has not been computed.

        Raises:
            UserError: its file is damaged or of another version.
        """
        path = self._path(cell)
        if not path.is_file():
            return None
        kept = read_file(KeptCell, path, "delete it to have it computed again")
        if kept.identity != _plain(cell.identity):
            raise UserError(f"{path} does not hold the result of this cell: delete it to have it computed again")
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
    """The results of ``cells`` in order; only what the store lacks is computed, and each result is kept at once.

    Args:
        cells: those of equal identity are computed once.
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
        # On an error or Ctrl-C too: with the generator its processes end.
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
    """Every item with its result, in the order of completion.

    Each item is worked on by one torch thread, so that no figure depends on ``jobs``.

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
    # The pool does not name its processes; they are those that are not there before it.
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
            "a worker process died, perhaps out of memory; what was finished is kept: "
            "repeat the command with fewer --jobs"
        ) from error
    finally:
        # Items may take hours, so what is unfinished is ended, not waited for.
        pool.shutdown(wait=finished, cancel_futures=True)
        if not finished:
            for process in set(active_children()) - others:
                process.terminate()


def _in_this_process(
    items: Sequence[T], open_worker: Callable[[], Callable[[T], R]]
) -> Generator[tuple[T, R], None, None]:
    if not items:
        return
    # Another number of threads splits sums differently and rounds them differently.
    with torch_threads(1):
        work = open_worker()
        for item in items:
            yield item, work(item)


def _begin_process() -> None:
    import torch

    # The default ends the process without a traceback on Ctrl-C, which a terminal sends to all of them. Where the
    # parent ignores it, as in the background of a script, so does this one.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """End with the parent: one that is killed cannot stop its workers, which would wait for ever."""
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
