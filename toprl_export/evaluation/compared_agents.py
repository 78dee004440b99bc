"""Which agents take part: patterns to directories, and what must hold for them to stand in one table."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from toprl_export.agent import AGENT_FILE, Agent, load_agent
from toprl_export.compare.cell import UNPRUNED
from toprl_export.errors import UserError
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.pruning.baselines.specs import BASELINES, ORACLE
from toprl_export.pruning.schedule import Schedule

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WILDCARDS = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Entrant:
    """An agent that takes part under a method's name."""

    method: str
    directory: Path
    agent: Agent

    @property
    def task(self) -> str:
        """The task that it was trained for."""
        return self.agent.record.task

    @property
    def seed(self) -> int:
        """The seed that it was trained with."""
        return self.agent.record.seed

    def schedule(self, budget_kept: int) -> Schedule:
        """The agent's own schedule for a budget, else one solved for its stages and decay, as `build` does.

        Raises:
            UserError: its stages cannot meet the budget.
        """
        return self.agent.record.plan.schedule_or_solved(budget_kept)


def find_agents(patterns: Sequence[str]) -> tuple[Entrant, ...]:
    """Load the agents that patterns name.

    Args:
        patterns: each a directory or a glob, with ``NAME=`` before it where the method is not to be called as its
            learner. A glob takes the agents among what it matches.

    Raises:
        UserError: nothing matches, a directory is no agent, a name is taken or impossible, or two agents of one
            method are of the same task and seed.
    """
    found: dict[Path, Entrant] = {}
    for pattern in patterns:
        label, place = _label(pattern)
        for directory in _directories(place):
            agent = load_agent(directory)
            found[directory.resolve()] = Entrant(_checked(label or agent.record.method), directory, agent)
    entrants = sorted(found.values(), key=lambda one: (one.method, one.task, one.seed))
    for one, other in pairwise(entrants):
        if (one.method, one.task, one.seed) == (other.method, other.task, other.seed):
            raise UserError(
                f"{one.directory} and {other.directory} are both agents of {one.method} for {one.task} with seed "
                f"{one.seed}: leave one out, or name them apart as NAME={other.directory}"
            )
        if (one.method, one.task) == (other.method, other.task) and _made(one) != _made(other):
            raise UserError(
                f"{one.directory} ({_made(one)}) and {other.directory} ({_made(other)}) would count as seeds of one "
                f"method: name them apart as NAME={other.directory}"
            )
    return tuple(entrants)


def _made(one: Entrant) -> str:
    """What agents that are seeds of one method have in common."""
    record, training = one.agent.record, one.agent.record.training
    recipe = Path(training.recipe).name
    actor = f"condition {record.actor.condition}, residual {record.actor.residual}, width {record.actor.hidden_size}"
    return f"recipe {recipe}, trained at {training.trained_budget_kept} tokens, {training.updates} updates, {actor}"


def check_agents(entrants: Sequence[Entrant], adapter: LVLMAdapter, tasks: Collection[str]) -> None:
    """Refuse agents that do not fit the model or whose task is not asked.

    Raises:
        UserError: as said.
    """
    for one in entrants:
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
    """The method's name, where one stands before the place."""
    name, equals, place = pattern.partition("=")
    if not equals or Path(pattern).exists():
        return None, pattern
    return name, place


def _checked(method: str) -> str:
    taken = (UNPRUNED, ORACLE, *BASELINES)
    if not _LABEL.fullmatch(method) or method in taken:
        raise UserError(
            f"a method cannot be called {method!r}: give it another name of letters, digits, '.', '_' and '-', "
            f"none of {', '.join(taken)}, as NAME=DIR"
        )
    return method


def _directories(place: str) -> list[Path]:
    if not _WILDCARDS.search(place) or Path(place).exists():
        return [Path(place)]
    matched = [Path(path) for path in sorted(glob.glob(place, recursive=True))]
    agents = [path for path in matched if (path / AGENT_FILE).is_file()]
    if not agents:
        raise UserError(
            f"--agents {place} matches no agent directory, expected such as hold {AGENT_FILE}: "
            "give directories that `toprl-export train` wrote"
        )
    return agents
