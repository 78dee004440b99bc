"""The agents of a comparison: found by patterns, and checked to fit each other, the model and the tasks."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from toprl_export.agent import AGENT_FILE, Agent, load_agent
from toprl_export.errors import UserError
from toprl_export.evaluation.questions import UNPRUNED
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.pruning.baselines.specs import BASELINES, ORACLE
from toprl_export.pruning.schedule import Schedule

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WILDCARDS = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class ComparedAgent:
    """An agent and the method that it is a seed of."""

    method: str
    directory: Path
    agent: Agent

    @property
    def task(self) -> str:
        """The task it was trained for."""
        return self.agent.record.task

    @property
    def seed(self) -> int:
        """The seed it was trained with."""
        return self.agent.record.seed

    def schedule(self, budget_kept: int) -> Schedule:
        """The agent's own schedule for a budget, else one solved for its stages and decay, as `build` does.

        Raises:
            UserError: its stages cannot meet the budget.
        """
        return self.agent.record.plan.schedule_or_solved(budget_kept)


def find_agents(patterns: Sequence[str]) -> tuple[ComparedAgent, ...]:
    """Load the agents that patterns name.

    Args:
        patterns: each a directory or a glob, with ``NAME=`` before it to name the method; without it the method has
            its learner's name. Of what a glob matches, the agents are taken.

    Raises:
        UserError: nothing matches, a directory holds no agent, a name is taken or malformed, or two agents of one
            method and task have the same seed or were trained differently.
    """
    found: dict[Path, ComparedAgent] = {}
    for pattern in patterns:
        label, place = _label(pattern)
        for directory in _directories(place):
            agent = load_agent(directory)
            # By place, so that patterns may overlap.
            found[directory.resolve()] = ComparedAgent(_checked(label or agent.record.method), directory, agent)
    agents = sorted(found.values(), key=lambda one: (one.method, one.task, one.seed))
    for one, other in pairwise(agents):
        if (one.method, one.task) == (other.method, other.task):
            _check_seeds(one, other)
    return tuple(agents)


def _check_seeds(one: ComparedAgent, other: ComparedAgent) -> None:
    """Refuse two agents of one method and task that are not two seeds of one training."""
    if one.seed == other.seed:
        raise UserError(
            f"{one.directory} and {other.directory} are both agents of {one.method} for {one.task} with seed "
            f"{one.seed}: leave one out, or name them apart as NAME={other.directory}"
        )
    ours, theirs = _training_of(one), _training_of(other)
    if ours != theirs:
        raise UserError(
            f"{one.directory} ({ours}) and {other.directory} ({theirs}) would count as seeds of one "
            f"method: name them apart as NAME={other.directory}"
        )


def _training_of(one: ComparedAgent) -> str:
    """What all seeds of one method must have in common, in words."""
    record, training = one.agent.record, one.agent.record.training
    recipe = Path(training.recipe).name
    actor = f"condition {record.actor.condition}, residual {record.actor.residual}, width {record.actor.hidden_size}"
    return f"recipe {recipe}, trained at {training.trained_budget_kept} tokens, {training.updates} updates, {actor}"


def check_agents(agents: Sequence[ComparedAgent], adapter: LVLMAdapter, tasks: Collection[str]) -> None:
    """Refuse agents that do not fit the model, or whose task is not among ``tasks``.

    Raises:
        UserError: there is such an agent.
    """
    for one in agents:
        if one.task not in tasks:
            raise UserError(
                f"{one.directory} is an agent for {one.task}, which is not among the tasks ({', '.join(tasks)}): "
                "add it to --tasks or leave the agent out"
            )
        try:
            one.agent.check_fits(adapter)
        except UserError as error:
            raise UserError(f"{one.directory}: {error}") from error


def _label(pattern: str) -> tuple[str | None, str]:
    """The method's name, if the pattern gives one, and the directory or glob."""
    name, equals, place = pattern.partition("=")
    # A directory's own name may hold an equals sign.
    if not equals or Path(pattern).exists():
        return None, pattern
    return name, place


def _checked(method: str) -> str:
    """The method's name.

    Raises:
        UserError: it is malformed, or is the name of a method that needs no agent.
    """
    taken = (UNPRUNED, ORACLE, *BASELINES)
    if not _LABEL.fullmatch(method) or method in taken:
        raise UserError(
            f"a method cannot be called {method!r}: give it another name of letters, digits, '.', '_' and '-', "
            f"none of {', '.join(taken)}, as NAME=DIR"
        )
    return method


def _directories(place: str) -> list[Path]:
    # A directory's own name may hold brackets, too.
    if not _WILDCARDS.search(place) or Path(place).exists():
        return [Path(place)]
    matched = [Path(path) for path in sorted(glob.glob(place, recursive=True))]
    agents = [path for path in matched if (path / AGENT_FILE).is_file()]
    if not agents:
        raise UserError(
            f"--agents {place} matches no agent directory, expected directories that hold {AGENT_FILE}: "
            "give directories that `toprl-export train` wrote"
        )
    return agents
