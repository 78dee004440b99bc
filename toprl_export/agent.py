"""An agent: a trained policy for one task, and its directory on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from toprl_export.errors import UserError
from toprl_export.fields import read_file, to_json
from toprl_export.files import write_bytes_atomic, write_json_atomic
from toprl_export.models.adapter import LVLMAdapter, weight_fingerprint
from toprl_export.pruning.actor import Actor, ActorConfig
from toprl_export.pruning.plan import PruningPlan

AGENT_FILE = "agent.json"
ACTOR_FILE = "actor.safetensors"
CRITIC_FILE = "critic.safetensors"


@dataclass(frozen=True)
class TrainingRecord:
    """How an agent was made.

    Attributes:
        recipe: its name or path.
        trained_budget_kept: the budget whose schedule the rollouts aimed at.
        updates: policy updates done.
        rollouts: masks sampled and rewarded.
        seconds: wall-clock time of training.
        command: the command line, or "python" when called from code.
        versions: package versions by name.
    """

    recipe: str
    trained_budget_kept: int
    updates: int
    rollouts: int
    seconds: float
    command: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class AgentRecord:
    """Everything about an agent but its weights.

    Attributes:
        task: the task that it was trained for.
        method: the learner ("toprl").
        model_id: the reference model it prunes, by name or path.
        model_fingerprint: that model's weights.
        plan: stages and the schedule of every budget.
        actor: the policy's sizes and what it sees.
        seed: of the training.
        training: how it was made.
        files: SHA-256 of the weights' files, by name; `save_agent` states it.
    """

    format: Literal["toprl-export/agent"] = field(default="toprl-export/agent", kw_only=True)
    version: Literal[2] = field(default=2, kw_only=True)
    task: str
    method: str
    model_id: str
    model_fingerprint: str
    plan: PruningPlan
    actor: ActorConfig
    seed: int
    training: TrainingRecord
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.plan.stages) != self.actor.stages:
            raise UserError(
                f"the agent's plan has {len(self.plan.stages)} stages but its actor serves {self.actor.stages}: "
                "train it for this plan"
            )


@dataclass(frozen=True)
class Agent:
    """A record and the policy with its weights."""

    record: AgentRecord
    actor: Actor

    @property
    def fingerprint(self) -> str:
        """SHA-256 over task, plan and weights: by it a bundle knows the agent it was built from."""
        identity: list[object] = [self.record.task, self.record.plan.to_json()]
        if self.record.actor.residual != "none":
            identity.append(self.record.actor.residual)  # which no weight's name or shape tells
        stated = json.dumps(identity, sort_keys=True)
        weights = weight_fingerprint(self.actor.state_dict())
        return hashlib.sha256(f"{stated}\n{weights}".encode()).hexdigest()

    def check_fits(self, adapter: LVLMAdapter) -> None:
        """Refuse a model that this agent was not trained on.

        Raises:
            UserError: other weights, another n or another hidden size.
        """
        record = self.record
        if record.plan.visual_tokens != adapter.visual_tokens:
            raise UserError(
                f"the agent for {record.task} prunes {record.plan.visual_tokens} visual tokens, but model "
                f"{adapter.model_id} has {adapter.visual_tokens}: train an agent for this model"
            )
        if record.actor.input_size != adapter.shape.hidden:
            raise UserError(
                f"the agent for {record.task} reads states of size {record.actor.input_size}, but model "
                f"{adapter.model_id} has a hidden size of {adapter.shape.hidden}: train an agent for this model"
            )
        if record.model_fingerprint != adapter.fingerprint:
            raise UserError(
                f"the agent for {record.task} was trained on other weights ({record.model_id}, "
                f"{record.model_fingerprint[:12]}…) than model {adapter.model_id} ({adapter.fingerprint[:12]}…): "
                "train an agent for this model or give the model it was trained on"
            )


def save_agent(directory: Path, agent: Agent, critic: Mapping[str, Tensor]) -> None:
    """Write the weights and then ``agent.json`` into an existing directory, so that a record implies weights."""
    files = {}
    for name, tensors in ((ACTOR_FILE, agent.actor.state_dict()), (CRITIC_FILE, critic)):
        content = save({key: tensor.contiguous() for key, tensor in tensors.items()})
        write_bytes_atomic(directory / name, content)
        files[name] = hashlib.sha256(content).hexdigest()
    write_json_atomic(directory / AGENT_FILE, to_json(replace(agent.record, files=files)))


def load_agent(directory: Path) -> Agent:
    """Read an agent directory.

    Raises:
        UserError: it is no agent directory, of an unknown version, or its weights were changed or do not fit.
    """
    path = directory / AGENT_FILE
    if not path.is_file():
        raise UserError(
            f"{directory} is no agent directory, because it has no {AGENT_FILE}: give what `toprl-export train` wrote"
        )
    record = read_file(AgentRecord, path, "train it again")
    actor = Actor(record.actor)
    try:
        content = (directory / ACTOR_FILE).read_bytes()
        if hashlib.sha256(content).hexdigest() != record.files.get(ACTOR_FILE):
            raise UserError(
                f"{directory / ACTOR_FILE} was changed (its SHA-256 is not that in {path}): restore it or train again"
            )
        actor.load_state_dict(load(content))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{directory / ACTOR_FILE} does not hold the actor of {path} ({reason}): train it again"
        ) from error
    return Agent(record, actor.eval().requires_grad_(False))
