"""Agents: read back as written, and refused where they do not belong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.agents import save_tiny_agent
from tests.support.tiny_llava import tiny_adapter
from toprl_export.agent import Agent, load_agent, save_agent
from toprl_export.errors import UserError
from toprl_export.pruning.actor import Actor, ActorConfig
from toprl_export.pruning.scorer import ScorerNeeds


def test_another_hidden_size_is_refused(tmp_path: Path):
    adapter = tiny_adapter()
    agent = load_agent(save_tiny_agent(tmp_path / "agent", adapter))
    agent.check_fits(adapter)
    config = ActorConfig(64, 8, 2)
    other = replace(agent, record=replace(agent.record, actor=config), actor=Actor(config))
    with pytest.raises(UserError, match="states of size 64, but model tiny has a hidden size of 128"):
        other.check_fits(adapter)


def test_seconds_that_are_no_number(tmp_path: Path):
    path = save_tiny_agent(tmp_path / "agent", tiny_adapter()) / "agent.json"
    payload = json.loads(path.read_text())
    payload["training"]["seconds"] = "long"
    path.write_text(json.dumps(payload))
    with pytest.raises(UserError, match=r"training\.seconds is 'long', expected a number"):
        load_agent(path.parent)


def test_what_the_actor_sees_is_read_back(tmp_path: Path):
    agent = load_agent(save_tiny_agent(tmp_path / "agent", tiny_adapter()))
    config = replace(agent.record.actor, condition="text", residual="fastv")
    (tmp_path / "asking").mkdir()
    save_agent(tmp_path / "asking", Agent(replace(agent.record, actor=config), Actor(config)), {})
    found = load_agent(tmp_path / "asking")
    assert found.record.actor == config
    assert found.actor.needs == ScorerNeeds(attention="last", text=True)


def test_agents_from_before_the_choice_see_no_question(tmp_path: Path):
    path = save_tiny_agent(tmp_path / "agent", tiny_adapter()) / "agent.json"
    payload = json.loads(path.read_text())
    assert [payload["actor"].pop(name) for name in ("condition", "residual")] == ["none", "none"]
    path.write_text(json.dumps(payload))
    assert load_agent(path.parent).record.actor == ActorConfig(128, 8, 2)
    payload["actor"]["condition"] = "speech"
    path.write_text(json.dumps(payload))
    with pytest.raises(UserError, match=r"actor\.condition is 'speech', expected 'none' or 'text': train it again"):
        load_agent(path.parent)
