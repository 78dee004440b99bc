"""Cross-task transfer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.agents import save_tiny_agent
from toprl_export.analysis.pictures import draw
from toprl_export.analysis.study import ByAgent, Study
from toprl_export.analysis.transfer import (
    Transfer,
    TransferColumn,
    TransferEntry,
    measure_transfer,
    smallest_common_budget,
)
from toprl_export.errors import UserError
from toprl_export.evaluation.compared_agents import ComparedAgent, find_agents
from toprl_export.evaluation.estimates import Estimate
from toprl_export.models.llava import LlavaAdapter


@pytest.fixture
def agents(adapter: LlavaAdapter, tmp_path: Path) -> tuple[ComparedAgent, ...]:
    """Two seeds for one task, one for the other."""
    for task, seed in (("echo-look", 0), ("echo-look", 1), ("echo-think", 2)):
        save_tiny_agent(tmp_path / "agents" / f"{task}-{seed}", adapter, task, budgets=(20, 12), seed=seed)
    return find_agents([str(tmp_path / "agents/*")])


def test_each_entry_is_the_mean_of_its_agents(open_study: Callable[..., Study], agents: tuple[ComparedAgent, ...]):
    study = open_study()
    found = measure_transfer(study, agents)
    assert found.budget_kept == 12 and found.trained_for == ("echo-look", "echo-think")
    assert {task: len(seeds) for task, seeds in found.seeds.items()} == {"echo-look": 2, "echo-think": 1}
    for task, column in zip(study.tasks, found.columns, strict=True):
        for entry in column.entries:
            methods = [
                ByAgent(one.directory, one.agent.fingerprint, one.schedule(12).keep_counts)
                for one in agents
                if one.task == entry.trained_for
            ]
            correct = study.correctness([(task, method) for method in methods], "again")
            assert entry.accuracy.value == pytest.approx(np.mean(correct))
        assert column.own.difference == Estimate(0.0, (0.0, 0.0))


def test_agents_of_other_tasks_are_left_out(
    open_study: Callable[..., Study], agents: tuple[ComparedAgent, ...], monkeypatch: pytest.MonkeyPatch
):
    answered: list[object] = []
    real = Study.correctness

    def recorded(study: Study, wanted: list[object], what: str) -> list[object]:
        answered.extend(wanted)
        return real(study, wanted, what)

    monkeypatch.setattr(Study, "correctness", recorded)
    found = measure_transfer(open_study("echo-look"), agents)
    assert found.trained_for == ("echo-look",)
    assert len(answered) == 1 + 2  # the unpruned model and the task's two agents


def test_files_say_what_was_found(open_study: Callable[..., Study], agents: tuple[ComparedAgent, ...]):
    study = open_study("echo-think")
    found = measure_transfer(study, agents, 20)
    found.write(study.scope.output_dir, draw(found))
    assert Transfer.load(study.scope.output_dir) == found
    lines = (study.scope.output_dir / "transfer.csv").read_text().splitlines()
    assert len(lines) == 2 and lines[1].startswith("echo-think,echo-think,reasoning,20,1,6,")
    text = (study.scope.output_dir / "transfer.md").read_text()
    assert "| echo-think (1 seed) | **" in text and "| unpruned | 83.3%" in text


def column(task: str, *differences: tuple[float, float, float]) -> TransferColumn:
    entries = [
        TransferEntry(name, Estimate(0.8 + value, (0.7, 0.9)), None, Estimate(value, (low, high)))
        for name, (value, low, high) in zip("abc", differences, strict=True)
    ]
    return TransferColumn(task, "perception", 100, Estimate(0.9, (0.8, 1.0)), tuple(entries))


def test_the_verdict_counts_columns_whose_diagonal_is_beaten_by_no_agent(open_study: Callable[..., Study]):
    own = (0.0, 0.0, 0.0)
    best = column("a", own, (-0.1, -0.2, -0.05), (0.0, -0.1, 0.1))
    within = column("b", (0.02, -0.01, 0.05), own, (-0.2, -0.3, -0.1))
    beaten = column("c", (0.05, 0.01, 0.09), (-0.1, -0.2, 0.0), own)
    assert [one.diagonal_is_best for one in (best, within, beaten)] == [True, False, False]
    seeds = dict.fromkeys("abc", (0,))
    found = Transfer(open_study("echo-look").provenance(), 64, tuple("abc"), seeds, (best, within, beaten))
    assert "best, alone or with others, on 1 of 3 tasks" in found.verdict()
    assert "on 2 of 3 no other agent is significantly better" in found.verdict() and "one is on c." in found.verdict()


def test_what_does_not_fit_is_one_line(
    open_study: Callable[..., Study], agents: tuple[ComparedAgent, ...], adapter: LlavaAdapter, tmp_path: Path
):
    with pytest.raises(UserError, match="no agent was given for echo-think"):
        measure_transfer(open_study(), agents[:2])
    other = save_tiny_agent(tmp_path / "other", adapter, "echo-think", budgets=(9,), seed=5)
    named = find_agents([f"mine={other}"])
    with pytest.raises(UserError, match="the methods mine, toprl, expected one"):
        measure_transfer(open_study(), (*agents, *named), 12)
    with pytest.raises(UserError, match="no budget in common"):
        smallest_common_budget((*agents, *named))
    with pytest.raises(UserError, match="cannot be met"):
        measure_transfer(open_study(), agents, 26)
