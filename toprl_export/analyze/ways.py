"""The ways in which an analysis prunes, each small enough to be sent to another process and to name a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from toprl_export.agent import load_agent
from toprl_export.errors import UserError
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.reference import Pruning
from toprl_export.models.walk import Decision
from toprl_export.pruning.baselines.attention import FastVScorer
from toprl_export.pruning.baselines.controls import UniformScorer
from toprl_export.pruning.scorer import StageInputs


class Way(Protocol):
    """How visual tokens are pruned."""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the answers depend on besides model and questions, as a JSON object."""
        ...

    def pruning(self, adapter: LVLMAdapter) -> Pruning | None:
        """What the reference runs; None for no pruning.

        Raises:
            UserError: the model cannot be pruned this way.
        """
        ...


@dataclass(frozen=True)
class Unpruned:
    """All visual tokens go through all layers."""

    @property
    def identity(self) -> dict[str, Any]:
        """See `Way.identity`."""
        return {"pruning": "none"}

    def pruning(self, adapter: LVLMAdapter) -> None:
        """See `Way.pruning`."""
        del adapter


@dataclass(frozen=True)
class OneCut:
    """One stage, before decoder layer ``layer``, that keeps the ``kept`` tokens of the highest FastV scores, or none.

    The score at a layer is the attention that the question's last token paid in the layer before. TOP-RL's Figure 1 is
    made of such cuts.
    """

    layer: int
    kept: int

    @property
    def identity(self) -> dict[str, Any]:
        """See `Way.identity`."""
        return {"pruning": "fastv" if self.kept else "everything", "layer": self.layer, "kept": self.kept}

    def pruning(self, adapter: LVLMAdapter) -> Pruning:
        """See `Way.pruning`."""
        del adapter
        if self.kept == 0:
            return NothingKept((self.layer,), (0,), UniformScorer())
        return Pruning((self.layer,), (self.kept,), FastVScorer())


@dataclass(frozen=True)
class NothingKept(Pruning):
    """Pruning that drops all visual tokens at its stage; its scorer is never asked."""

    def decide(self, inputs: StageInputs) -> Decision:
        """No token: ``int64 [b, 0]``."""
        return Decision(inputs.origin[:, :0])


@dataclass(frozen=True)
class ByAgent:
    """A trained agent that keeps so many tokens at each of its stages; ``fingerprint`` is the agent's, so that another
    one in its place is noticed."""

    directory: Path
    fingerprint: str
    keep_counts: tuple[int, ...]

    @property
    def identity(self) -> dict[str, Any]:
        """See `Way.identity`."""
        return {"pruning": "agent", "fingerprint": self.fingerprint, "keep_counts": self.keep_counts}

    def pruning(self, adapter: LVLMAdapter) -> Pruning:
        """See `Way.pruning`."""
        agent = load_agent(self.directory)
        if agent.fingerprint != self.fingerprint:
            raise UserError(f"the agent in {self.directory} has changed meanwhile: repeat the command")
        agent.check_fits(adapter)
        return Pruning(agent.record.plan.stage_layers, self.keep_counts, agent.actor.to(adapter.device))
