"""Cells: what code they depend on; computed once, kept one by one, in this process and in others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import toprl_export
from tests.support.agents import save_tiny_agent
from tests.support.cell_work import Number, OpenSquarer
from tests.support.comparison import make_cell
from toprl_export.agent import load_agent
from toprl_export.analysis.study import AnswerCell, ByAgent, OneCut, OpenAnswerer, Unpruned
from toprl_export.comparison.method_cell import OpenCellRunner
from toprl_export.errors import UserError
from toprl_export.evaluation.cells import CellStore, code_digest, compute_cells, reached_modules
from toprl_export.evaluation.questions import TaskQuestions
from toprl_export.models.adapter import LVLMAdapter

SOURCES = {
    "__init__": "def __getattr__(name):\n    from shop import offered\n",
    "worker": "from shop import named\nfrom shop.rooms.near import something\n"
    "if TYPE_CHECKING:\n    from shop import typed\nelse:\n    import shop.untyped\n"
    "REGISTRY = {'scorer': 'shop.registered:Scorer'}\ndef work():\n    from shop import lazy\n",
    "rooms/__init__": "import shop.eager\n",
    "rooms/near": "from os import path\n",
    "rooms/far": "",
    **dict.fromkeys(("named", "untyped", "registered", "lazy", "eager", "typed", "offered"), ""),
}
UNREACHED = {"rooms/far", "typed", "offered"}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package whose worker reaches some of its modules, each in another way."""
    for name, source in SOURCES.items():
        file = tmp_path / "shop" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    return tmp_path / "shop"


def test_a_module_is_reached_however_it_is_imported(package: Path):
    files = reached_modules("shop.worker", package).values()
    assert {str(file.relative_to(package).with_suffix("")) for file in files} == set(SOURCES) - UNREACHED


@pytest.mark.parametrize("name", SOURCES)
def test_the_digest_follows_the_files_that_are_reached_and_no_others(package: Path, name: str):
    before = code_digest("shop.worker", package)
    with (package / f"{name}.py").open("a") as file:
        file.write("# changed\n")
    assert (code_digest("shop.worker", package) == before) == (name in UNREACHED)


@pytest.mark.parametrize("worker", ["toprl_export.comparison.method_cell", "toprl_export.analysis.study"])
def test_all_that_python_loads_to_answer_is_reached(worker: str, adapter: LVLMAdapter, model_dir: Path, tmp_path: Path):
    agent = load_agent(save_tiny_agent(tmp_path / "agent", adapter))
    if worker.endswith("study"):
        questions = TaskQuestions("mini-exist", "perception", 2, "d", 576)
        methods = (Unpruned(), OneCut(1, 0), OneCut(1, 5), ByAgent(tmp_path / "agent", agent.fingerprint, (15, 9)))
        opener: object = OpenAnswerer(str(model_dir), "cpu", adapter.answering_fingerprint)
        cells: list[object] = [AnswerCell(questions, method, 0, ("f", "float32", "cpu")) for method in methods]
    else:
        named = [make_cell(method, questions=2) for method in ("unpruned", "random", "fastv", "visionzip")]
        setting = replace(named[0].setting, model=str(model_dir), model_fingerprint=adapter.answering_fingerprint)
        cells = [*named, replace(named[2], kind="agent", scorer=agent.fingerprint, agent=str(tmp_path / "agent"))]
        opener = OpenCellRunner(setting)
    program = (
        f"import sys\nfrom pathlib import PosixPath\nfrom {worker} import *\n"
        f"for done in map({opener!r}(), {cells!r}):\n    assert len(done['right']) == 2\n"
        "print(*(name for name in sys.modules if name.partition('.')[0] == 'toprl_export'))\n"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    reached = reached_modules(worker, Path(toprl_export.__file__).parent)
    assert worker in loaded and "toprl_export.models.llava" in loaded and "toprl_export.tasks.mini_tasks" in loaded
    assert set(loaded) <= set(reached)
    assert not [
        name for name in reached if name.split(".")[1:2] in (["cli"], ["validation"], ["building"], ["trainer"])
    ]


@pytest.fixture
def store(tmp_path: Path) -> CellStore:
    return CellStore(tmp_path / "cells")


def squares(store: CellStore, values: list[int], notes: Path, jobs: int = 1) -> list[int]:
    results = compute_cells([Number(value) for value in values], store, OpenSquarer(notes), jobs, "squares")
    return [result["square"] for result in results]


def noted(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[0]) for path in folder.iterdir() if path.is_file())


def runs(pid: int) -> bool:
    """Whether a process is there and not merely waiting to be reaped."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] not in "ZX"


def test_results_come_in_order_and_each_identity_is_computed_once(store: CellStore, tmp_path: Path):
    assert squares(store, [3, 1, 3, 2], tmp_path) == [9, 1, 9, 4]
    assert noted(tmp_path) == [1, 2, 3]
    assert len(list(store.directory.iterdir())) == 3


def test_what_is_there_is_not_computed_again(store: CellStore, tmp_path: Path):
    squares(store, [3, 1], tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    assert squares(store, [1, 3, 5], again) == [1, 9, 25]
    assert noted(again) == [5]


def test_a_cell_is_named_by_its_whole_identity(store: CellStore):
    store.save(Number(3), {"square": 9})
    assert store.load(Number(3)) == {"square": 9}
    assert store.load(Number(4)) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ('{"format": "toprl-export/cell", "version": 2}', "has version 2"),
        ('{"format": "toprl-export/cell", "version": 1, "identity": {"number": 4}, "result": {}}', "delete it"),
        ('{"format": "toprl-export/cell", "version": 1, "identity": null}', "delete it"),
    ],
)
def test_a_damaged_file_is_one_line_and_stays(store: CellStore, tmp_path: Path, content: str, message: str):
    store.save(Number(3), {"square": 9})
    (path,) = store.directory.iterdir()
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        squares(store, [3], tmp_path)
    assert path.read_text() == content


def test_an_error_loses_no_finished_cell(store: CellStore, tmp_path: Path):
    with pytest.raises(UserError, match="13 is not to be squared"):
        squares(store, [1, 2, 13, 4], tmp_path)
    assert [store.load(Number(value)) is not None for value in (1, 2, 13, 4)] == [True, True, False, False]


def test_other_processes_give_the_same_results(store: CellStore, tmp_path: Path):
    notes = tmp_path / "notes"
    notes.mkdir()
    values = list(range(6))
    found = squares(store, values, notes, jobs=2)
    assert found == squares(CellStore(tmp_path / "alone"), values, tmp_path) == [value**2 for value in values]
    assert str(os.getpid()) not in {path.name.split("-")[1] for path in notes.iterdir()}
    assert noted(notes) == values


@pytest.mark.parametrize(("value", "message"), [(13, "13 is not to be squared"), (666, "fewer --jobs")])
def test_what_goes_wrong_in_another_process_is_one_line(store: CellStore, tmp_path: Path, value: int, message: str):
    with pytest.raises(UserError, match=message):
        squares(store, [value, 1], tmp_path, jobs=2)


@pytest.fixture
def working(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has done one cell, with two others that work at the next ones."""
    command = f"from tests.support.cell_work import square_many; square_many({str(tmp_path)!r}, 4)"
    process = subprocess.Popen(
        [sys.executable, "-c", command], cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, start_new_session=True
    )
    while len(noted(tmp_path)) < 3 and process.poll() is None:
        time.sleep(0.05)
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def workers(folder: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in folder.iterdir() if path.is_file() and path.name[0] != "0"]


def test_an_interrupt_ends_all_processes_and_loses_no_finished_cell(
    store: CellStore, tmp_path: Path, working: subprocess.Popen[bytes]
):
    os.killpg(working.pid, signal.SIGINT)
    _, errors = working.communicate()
    assert working.returncode == -signal.SIGINT and errors.count(b"Traceback") <= 1
    assert len(workers(tmp_path)) == 2 and not any(map(runs, workers(tmp_path)))
    assert [store.load(Number(value)) is not None for value in range(4)] == [True, False, False, False]
    assert json.loads(next(store.directory.iterdir()).read_text())["result"] == {"square": 0}


def test_workers_end_with_a_process_that_was_killed(tmp_path: Path, working: subprocess.Popen[bytes]):
    assert len(workers(tmp_path)) == 2 and all(map(runs, workers(tmp_path)))
    working.kill()
    working.wait()
    for _ in range(600):  # half as long as their cells would still take
        if not any(map(runs, workers(tmp_path))):
            break
        time.sleep(0.05)
    assert not any(map(runs, workers(tmp_path))) and noted(tmp_path) == [0, 1, 2]


def test_a_worker_ignores_ctrl_c_where_its_parent_does(tmp_path: Path):
    """As a script's background jobs do: a terminal's Ctrl-C goes to them too, and is not meant for them."""
    program = (
        "import signal, sys\n"
        "from toprl_export.evaluation import cells\n"
        "signal.signal(signal.SIGINT, getattr(signal, sys.argv[1]))\n"
        "cells._begin_process()\n"
        "print(signal.getsignal(signal.SIGINT).name)\n"
    )
    for before, after in (("SIG_IGN", "SIG_IGN"), ("default_int_handler", "SIG_DFL")):
        told = subprocess.run([sys.executable, "-c", program, before], capture_output=True, text=True, check=True)
        assert told.stdout.strip() == after
