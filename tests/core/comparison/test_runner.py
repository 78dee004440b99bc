"""compare on a tiny model: files and figures, the cache, interruptions, processes, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.agents import save_tiny_agent
from tests.support.comparison import made_up_comparison
from toprl_export.comparison import runner
from toprl_export.comparison.method_cell import CellRunner, MethodCell
from toprl_export.comparison.recompute import recompute
from toprl_export.comparison.request import CompareRequest
from toprl_export.comparison.result import read_comparison
from toprl_export.comparison.runner import check_directory, compare, prepare, write_outputs
from toprl_export.errors import UserError
from toprl_export.evaluation.cells import Result
from toprl_export.models.adapter import LVLMAdapter


@pytest.fixture
def tiny_request(model_dir: Path, adapter: LVLMAdapter, tmp_path: Path) -> CompareRequest:
    """Two seeds of an agent, random and FastV on 12 questions of mini-exist at two budgets."""
    for seed in (0, 1):
        save_tiny_agent(tmp_path / "agents" / f"seed-{seed}", adapter, budgets=(12, 6), seed=seed)
    return CompareRequest(
        output_dir=tmp_path / "out",
        model=str(model_dir),
        agents=(f"{tmp_path}/agents/*",),
        baselines=("fastv",),
        budgets_kept=(12, 6),
        limit=12,
        draws=2,
        iterations=0,
        device="cpu",
    )


def figures(request: CompareRequest) -> object:
    """Everything but when and how it was made."""
    comparison = read_comparison(request.output_dir / "compare.json")
    return replace(comparison, provenance=replace(comparison.provenance, date="", command=""))


def counted(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[MethodCell]:
    """Record which cells are measured; press Ctrl-C at one of them."""
    measured: list[MethodCell] = []
    call = CellRunner.__call__

    def measure(self: CellRunner, cell: MethodCell) -> Result:
        if len(measured) == stop_at:
            raise KeyboardInterrupt
        measured.append(cell)
        return call(self, cell)

    monkeypatch.setattr(CellRunner, "__call__", measure)
    return measured


def test_the_whole_comparison(tiny_request: CompareRequest) -> None:
    comparison = compare(replace(tiny_request, iterations=1, threads=1))
    assert [method.name for method in comparison.methods] == ["unpruned", "random", "fastv", "toprl"]
    assert len(comparison.entries) == 1 + 2 * 3
    full = comparison.entry("unpruned", "mini-exist", 25)
    agents = comparison.entry("toprl", "mini-exist", 6)
    assert full is not None and agents is not None
    assert 0 < full.accuracy.value < 1 and agents.seeds == (0, 1)
    assert agents.retention.value == pytest.approx(np.mean(agents.accuracy_by_seed) / full.accuracy.value)
    assert {one.role for one in comparison.margins} == {"best baseline", "best baseline on average", "random"}
    assert comparison.latency is not None and len(comparison.latency.entries) == 1 + 2 * 3
    files = {path.name for path in tiny_request.output_dir.iterdir()}
    assert files == {"cells", "answers.json.gz", "compare.md", "compare.csv", "compare.json", "pareto.png"}
    assert recompute(tiny_request.output_dir) == (comparison, True)
    assert read_comparison(tiny_request.output_dir / "compare.json") == comparison


def test_what_was_measured_is_not_measured_again(tiny_request: CompareRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(tiny_request)
    first = figures(tiny_request)
    again = counted(monkeypatch)
    compare(tiny_request)
    assert (again, figures(tiny_request)) == ([], first)
    compare(replace(tiny_request, budgets_kept=(12, 6, 9)))
    assert {(cell.method, cell.budget_kept) for cell in again} == {("random", 9), ("fastv", 9), ("toprl", 9)}
    before = prepare(replace(tiny_request, limit=13)).grid.cells
    assert all(prepare(tiny_request).store.load(cell) is None for cell in before)  # other questions, other cells


def test_an_interrupted_comparison_goes_on(tiny_request: CompareRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(tiny_request)
    uninterrupted = figures(tiny_request)
    elsewhere = replace(tiny_request, output_dir=tiny_request.output_dir.with_name("interrupted"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        done = counted(patch, stop_at=4)
        compare(elsewhere)
    assert len(done) == 4 and not (elsewhere.output_dir / "compare.json").exists()
    rest = counted(monkeypatch)
    compare(elsewhere)
    assert len(rest) == 1 + 2 * 5 - 4 and not set(rest) & set(done)
    assert figures(elsewhere) == uninterrupted


@pytest.mark.slow
def test_two_processes_find_what_one_does(tiny_request: CompareRequest) -> None:
    compare(tiny_request)
    elsewhere = replace(tiny_request, output_dir=tiny_request.output_dir.with_name("two"), jobs=2)
    compare(elsewhere)
    assert figures(elsewhere) == figures(tiny_request)


@pytest.mark.slow
def test_a_process_tells_the_users_mistake_in_one_line(tiny_request: CompareRequest, tmp_path: Path) -> None:
    prepared = prepare(replace(tiny_request, jobs=2))
    (tmp_path / "agents" / "seed-1" / "actor.safetensors").write_bytes(b"damaged meanwhile")
    with pytest.raises(UserError, match=r"actor\.safetensors was changed"):
        runner.measure(prepared)


def test_a_task_that_the_whole_model_cannot_do_is_refused_first(
    tiny_request: CompareRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = counted(monkeypatch)
    request = replace(tiny_request, agents=(), tasks=("mini-exist", "mini-count"))
    with pytest.raises(UserError, match="none of 12 questions of mini-count correctly"):
        compare(request)
    assert {cell.method for cell in measured} == {"unpruned"}
    kept = [json.loads(path.read_text()) for path in (request.output_dir / "cells").iterdir()]
    assert sorted(one["identity"]["task"] for one in kept) == ["mini-count", "mini-exist"]  # nothing is lost


def test_mistakes_are_found_before_anything_is_measured(
    tiny_request: CompareRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = counted(monkeypatch)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("dear diary")
    for change, expected in (
        ({"output_dir": tmp_path / "full"}, "holds something else"),
        ({"model": "mini"}, "but model mini has"),
        ({"tasks": ("mini-count",)}, "which is not among the tasks"),
        ({"budgets_kept": (26,)}, "no method can keep 26"),
        ({"agents": ("nowhere",)}, "is no agent directory"),
    ):
        with pytest.raises(UserError, match=expected):
            compare(replace(tiny_request, **change))
    assert not measured and not tiny_request.output_dir.exists()


def test_a_damaged_cell_is_one_line(tiny_request: CompareRequest) -> None:
    compare(tiny_request)
    cell = next((tiny_request.output_dir / "cells").iterdir())
    cell.write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        compare(tiny_request)


def test_four_files_are_written_and_may_be_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    check_directory(target)
    write_outputs(target, made_up_comparison())
    assert sorted(path.name for path in target.iterdir()) == ["compare.csv", "compare.json", "compare.md", "pareto.png"]
    assert read_comparison(target / "compare.json") == made_up_comparison()
    check_directory(target)


def test_an_interrupted_comparison_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / ".compare.json.partial-1a2b3c4d").write_text("left by a kill")
    check_directory(tmp_path)


@pytest.mark.parametrize("name", ["thesis.tex", "compare.md"])
def test_a_directory_of_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("dear diary")
    with pytest.raises(UserError, match=r"thesis\.tex\), so it is left alone|compare\.json does not exist"):
        check_directory(tmp_path)


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file, expected a directory"):
        check_directory(tmp_path / "out")
