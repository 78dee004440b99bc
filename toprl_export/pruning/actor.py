"""The learned scorer of TOP-RL, its critic, and several actors stacked into one module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from toprl_export.errors import UserError
from toprl_export.pruning.scorer import Scorer, StageInputs


@dataclass(frozen=True)
class ActorConfig:
    """Size of an actor and its critic.

    Attributes:
        input_size: d₁, hidden size of the decoder whose states it reads.
        hidden_size: d₂, its own width.
        stages: number of pruning stages it serves.

    Raises:
        UserError: a size is below 1.
    """

    input_size: int
    hidden_size: int = 64
    stages: int = 3

    def __post_init__(self) -> None:
        for name in ("input_size", "hidden_size", "stages"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UserError(f"actor {name} is {value!r}, expected a whole number of at least 1: correct it")


class Trunk(nn.Module):
    """LayerNorm → d₁→d₂ (+ a learned vector per stage) → d₂→d₂ → d₂→d₂, GELU after each: the cost of Eq. 11."""

    def __init__(self, config: ActorConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.input_size = config.input_size
        self.enter = nn.Linear(config.input_size, width)
        self.stage_embedding = nn.Parameter(torch.randn(config.stages, width) * 0.02)
        self.middle = nn.Linear(width, width)
        self.last = nn.Linear(width, width)

    def forward(self, inputs: StageInputs) -> Tensor:
        """Features of each token, float32 ``[b, n_t, d₂]``."""
        # Residual streams grow with depth, so a fixed normalisation lets one MLP serve all stages.
        normed = functional.layer_norm(inputs.visual.float(), (self.input_size,))
        hidden = functional.gelu(self.enter(normed) + self.stage_embedding[inputs.stage])  # [b, n_t, d₂]
        hidden = functional.gelu(self.middle(hidden))
        return functional.gelu(self.last(hidden))


class Actor(Scorer):
    """The policy π_θ: a light MLP with a two-logit head, shared over stages. Weights are float32."""

    def __init__(self, config: ActorConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config)
        self.head = nn.Linear(config.hidden_size, 2)

    def logits(self, inputs: StageInputs) -> Tensor:
        """Logits of (drop, keep), float32 ``[b, n_t, 2]``."""
        logits: Tensor = self.head(self.trunk(inputs))
        return logits

    def forward(self, inputs: StageInputs) -> Tensor:
        """Log-odds of keeping each token, float32 ``[b, n_t]``."""
        drop, keep = self.logits(inputs).unbind(-1)
        return keep - drop


class Critic(nn.Module):
    """The value of a state: the same trunk, mean and max over the tokens still alive, one number."""

    def __init__(self, config: ActorConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config)
        self.head = nn.Linear(2 * config.hidden_size, 1)

    def forward(self, inputs: StageInputs) -> Tensor:
        """Value of each image's state, float32 ``[b]``. A row without a living token counts as all zeros."""
        hidden: Tensor = self.trunk(inputs)  # [b, n_t, d₂]
        if inputs.alive is None:
            mean, maximum = hidden.mean(1), hidden.amax(1)
        else:
            alive = inputs.alive.unsqueeze(-1)  # [b, n_t, 1]
            mean = (hidden * alive).sum(1) / alive.sum(1).clamp(min=1)
            maximum = hidden.masked_fill(~alive, -torch.inf).amax(1)
            maximum = torch.where(alive.any(1), maximum, torch.zeros_like(maximum))
        value: Tensor = self.head(torch.cat([mean, maximum], dim=-1))  # [b, 1]
        return value.squeeze(-1)


class StackedActors(Scorer):
    """Several actors of one configuration, of which an index picks one: weights ``[A, …]``, exportable.

    Raises:
        UserError: no actor was given, or their configurations differ.
    """

    def __init__(self, actors: Sequence[Actor]) -> None:
        super().__init__()
        if not actors:
            raise UserError("no agent was given to stack, expected at least one: add one")
        self.config = actors[0].config
        for actor in actors[1:]:
            if actor.config != self.config:
                raise UserError(
                    f"agents of one bundle must have one shape, but {actor.config} differs from {self.config}: "
                    "train them alike or build one bundle each"
                )
        self.count = len(actors)
        states = [actor.state_dict() for actor in actors]
        self._names = tuple(states[0])
        for name in self._names:
            stacked = torch.stack([state[name].detach() for state in states])  # [A, …]
            self.register_buffer(_buffer_name(name), stacked)
        with torch.device("meta"):
            template = Actor(self.config)
        # In a tuple, so that the weightless template is no submodule and never appears in a state dict or graph.
        self._template = (template,)

    def forward(self, inputs: StageInputs, agent_index: Tensor | None = None) -> Tensor:
        """Scores of the chosen actor, float32 ``[b, n_t]``.

        Args:
            inputs: the state at the stage.
            agent_index: int64 scalar, 0 to A-1; None picks the first actor.
        """
        if agent_index is None:
            agent_index = torch.zeros((), dtype=torch.int64, device=inputs.visual.device)
        # index_select, not stacked[agent_index]: the latter would read the index back to the host.
        row = agent_index.reshape(1)
        weights = {name: self.get_buffer(_buffer_name(name)).index_select(0, row).squeeze(0) for name in self._names}
        scores: Tensor = functional_call(self._template[0], weights, (inputs,))
        return scores


def _buffer_name(name: str) -> str:
    return name.replace(".", "_")
