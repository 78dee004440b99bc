"""Agents: what patterns find, and which agents may not stand in one table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.agents import save_tiny_agent
from tests.support.tiny_llava import tiny_adapter
from toprl_export.errors import UserError
from toprl_export.evaluation.compared_agents import check_agents, find_agents
from toprl_export.models.adapter import LVLMAdapter


@pytest.fixture
def agents(tmp_path: Path, adapter: LVLMAdapter) -> Path:
    """Two seeds for mini-exist, one agent for mini-count, and a file among them."""
    for seed in (1, 0):
        save_tiny_agent(tmp_path / f"seed-{seed}" / "mini-exist", adapter, seed=seed)
    save_tiny_agent(tmp_path / "seed-0" / "mini-count", adapter, task="mini-count")
    (tmp_path / "seed-0" / "notes.txt").write_text("not an agent")
    return tmp_path


def test_a_glob_takes_the_agents_it_matches(agents: Path) -> None:
    found = find_agents([f"{agents}/seed-*/*"])
    assert [(one.method, one.task, one.seed) for one in found] == [
        ("toprl", "mini-count", 0),
        ("toprl", "mini-exist", 0),
        ("toprl", "mini-exist", 1),
    ]


def test_a_name_before_the_place_names_the_method(agents: Path) -> None:
    found = find_agents([f"ours={agents}/seed-1/*", str(agents / "seed-0" / "mini-exist")])
    assert [(one.method, one.seed) for one in found] == [("ours", 1), ("toprl", 0)]


def test_a_directory_named_twice_is_one_agent(agents: Path) -> None:
    place = agents / "seed-0" / "mini-exist"
    assert len(find_agents([str(place), f"{agents}/seed-0/../seed-0/mini-exist"])) == 1


def test_a_directory_with_an_equals_sign_is_a_directory(tmp_path: Path, adapter: LVLMAdapter) -> None:
    place = save_tiny_agent(tmp_path / "lr=0.1", adapter)
    assert find_agents([str(place)])[0].method == "toprl"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{}/none-*", "matches no agent directory"),
        ("{}/seed-0", "is no agent directory"),
        ("fastv={}/seed-0/mini-exist", "cannot be called 'fastv'"),
        ("a b={}/seed-0/mini-exist", "cannot be called 'a b'"),
    ],
)
def test_wrong_patterns_are_one_line(agents: Path, pattern: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        find_agents([pattern.format(agents)])


def test_two_agents_of_one_seed_must_be_named_apart(agents: Path, adapter: LVLMAdapter) -> None:
    save_tiny_agent(agents / "again", adapter, hidden_size=16)
    with pytest.raises(UserError, match="both agents of toprl for mini-exist with seed 0: leave one out, or name them"):
        find_agents([f"{agents}/seed-*/*", f"{agents}/again"])
    apart = find_agents([f"{agents}/seed-*/*", f"wide={agents}/again"])
    assert {one.method for one in apart} == {"toprl", "wide"}


def test_agents_made_otherwise_are_no_seeds_of_one_method(agents: Path, adapter: LVLMAdapter) -> None:
    other = save_tiny_agent(agents / "seed-2" / "mini-exist", adapter, seed=2, hidden_size=16)
    with pytest.raises(UserError, match=r"width 8\) and .*width 16\) would count as seeds of one method"):
        find_agents([f"{agents}/seed-*/mini-exist"])
    assert len(find_agents([f"{agents}/seed-[01]/mini-exist", f"wide={other}"])) == 3


def test_agents_of_a_task_that_is_not_compared_are_refused(agents: Path, adapter: LVLMAdapter) -> None:
    found = find_agents([f"{agents}/seed-0/*"])
    with pytest.raises(UserError, match="for mini-count, which is not among the tasks"):
        check_agents(found, adapter, ["mini-exist"])
    check_agents(found, adapter, ["mini-exist", "mini-count"])


def test_agents_of_another_model_are_refused(agents: Path) -> None:
    with pytest.raises(UserError, match="reads states of size 64, but model tiny has a hidden size of 128"):
        check_agents(find_agents([f"{agents}/seed-1/*"]), tiny_adapter(), ["mini-exist"])


def test_the_agents_own_schedule_wins_over_a_solved_one(agents: Path) -> None:
    one = find_agents([f"{agents}/seed-1/*"])[0]
    assert one.schedule(12) == one.agent.record.plan.schedule(12)
    assert one.schedule(10).budget_kept == 10  # which training did not know
    with pytest.raises(UserError, match="cannot be met"):
        one.schedule(26)
