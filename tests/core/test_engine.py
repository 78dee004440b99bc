"""Engines by name: unknown ones list the known, and one that cannot work here says so before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.agents import save_tiny_agent
from tests.support.fake_engine import FakeEngine
from tests.support.tiny_llava import tiny_adapter
from toprl_export.agent import load_agent
from toprl_export.engine import BuildRequest, SessionOptions, get_engine
from toprl_export.errors import MissingExtraError, UserError
from toprl_export.pruning.actor import StackedActors
from toprl_export.pruning.baselines.attention import FastVScorer
from toprl_export.pruning.baselines.specs import baseline_plan


def test_an_engine_is_made_and_checked(fake_engine: None, monkeypatch: pytest.MonkeyPatch):
    assert isinstance(get_engine("fake"), FakeEngine)

    def missing(self) -> None:
        raise MissingExtraError("tensorrt", "trt")

    monkeypatch.setattr(FakeEngine, "check", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'toprl-export\[trt\]'"):
        get_engine("fake")


def test_an_unknown_engine(fake_engine: None):
    with pytest.raises(UserError, match="unknown engine 'fale'; did you mean 'fake'\\? known: fake"):
        get_engine("fale")


def test_a_request_is_for_agents_or_for_a_baseline(tmp_path: Path):
    adapter = tiny_adapter()
    agent = load_agent(save_tiny_agent(tmp_path / "agent", adapter))
    plan, other = agent.record.plan, baseline_plan("fastv-p", adapter.visual_tokens, 4, (12, 8))
    assert isinstance(BuildRequest(adapter, (agent, agent), plan, "fp32").scorer, StackedActors)
    assert isinstance(BuildRequest(adapter, (), other, "fp32", baseline="fastv-p").scorer, FastVScorer)
    for agents, baseline in (((), None), ((agent,), "fastv-p")):
        with pytest.raises(UserError, match="from agents or from one baseline"):
            BuildRequest(adapter, agents, plan, "fp32", baseline=baseline)
    with pytest.raises(UserError, match="scores by 'fastv', expected 'actor'"):
        BuildRequest(adapter, (agent,), other, "fp32")


def test_only_one_budget_can_be_baked_in():
    adapter = tiny_adapter()
    plan = baseline_plan("uniform", adapter.visual_tokens, 4, (12, 8))
    with pytest.raises(UserError, match=r"not several \(8, 12\)"):
        BuildRequest(adapter, (), plan, "fp32", static_k=True, baseline="uniform")


def test_an_engine_refuses_options_for_running_that_it_does_not_know():
    known = {"tiles": ("few", "many"), "fused": ("yes",)}
    SessionOptions(engine_options={"tiles": "many"}).check_engine_options("fake", known)
    refused = [
        ({"tile": "many"}, known, "the engine 'fake' has no option 'tile' for running a bundle, it has tiles, fused"),
        ({"tiles": "all"}, known, "the option 'tiles' of the engine 'fake' is 'all', expected few or many"),
        ({"tiles": "many"}, {}, "the engine 'fake' has no option 'tiles' for running a bundle, it has none"),
    ]
    for given, has, message in refused:
        with pytest.raises(UserError, match=message):
            SessionOptions(engine_options=given).check_engine_options("fake", has)
