"""The learned scorer of TOP-RL, its critic, and several actors stacked into one module for export."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from toprl_export.errors import UserError
from toprl_export.pruning.scorer import Scorer, ScorerNeeds, StageInputs, question_states

CONDITIONS = ("none", "text")
RESIDUALS = ("none", "fastv", "pyramiddrop")

UNIT_GAIN = math.log(math.e - 1)
"""softplus of this is 1."""

ATTENTION_FLOOR = 1e-12
"""Attention below this counts as this, so that its logarithm stays finite."""


@dataclass(frozen=True)
class ActorConfig:
    """Size of an actor and its critic, and what they see.

    Attributes:
        input_size: d₁, hidden size of the decoder whose states it reads.
        hidden_size: d₂, its own width.
        stages: number of pruning stages it serves.
        condition: "text" shows actor and critic the question's states at every stage.
        residual: the baseline whose score, the question's attention on each token, is added to the actor's own:
            "fastv" reads it in the layer just run, "pyramiddrop" in the one about to run.

    Raises:
        UserError: a size is below 1, or a choice is unknown.
    """

    input_size: int
    hidden_size: int = 64
    stages: int = 3
    condition: Literal["none", "text"] = "none"
    residual: Literal["none", "fastv", "pyramiddrop"] = "none"

    def __post_init__(self) -> None:
        for name in ("input_size", "hidden_size", "stages"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UserError(f"actor {name} is {value!r}, expected a whole number of at least 1: correct it")
        for name, known in (("condition", CONDITIONS), ("residual", RESIDUALS)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"actor {name} is {getattr(self, name)!r}, expected one of {', '.join(known)}: correct it"
                )

    @property
    def needs(self) -> ScorerNeeds:
        """What the walk must compute for the actor and its critic."""
        return ScorerNeeds(
            attention="none" if self.residual == "none" else "last",
            attention_layer="next" if self.residual == "pyramiddrop" else "previous",
            text=self.condition == "text",
        )


class Trunk(nn.Module):
    """LayerNorm → d₁→d₂ (+ a learned vector per stage) → d₂→d₂ → d₂→d₂, GELU after each: the cost of Eq. 11.

    With condition "text", the question's mean state (a bag of words where no layer has run yet) and its last token's
    state (which has read the whole question in deeper layers) give a shift and a gate of the first layer's output: the
    gate makes a product of token and question, so that features can say how well the two match.
    """

    def __init__(self, config: ActorConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.input_size = config.input_size
        self.conditioned = config.condition == "text"
        self.enter = nn.Linear(config.input_size, width)
        if self.conditioned:
            self.question = nn.Linear(2 * config.input_size, 2 * width)
        self.stage_embedding = nn.Parameter(torch.randn(config.stages, width) * 0.02)
        self.middle = nn.Linear(width, width)
        self.last = nn.Linear(width, width)

    def forward(self, inputs: StageInputs) -> Tensor:
        """Features of each token, float32 ``[b, n_t, d₂]``."""
        normed, stage = self._normed(inputs.visual), self.stage_embedding[inputs.stage]
        if self.conditioned:
            shift, gate = self._question(inputs).unsqueeze(1).chunk(2, dim=-1)  # [b, 1, d₂] each
            entered = self.enter(normed) * (1 + gate) + (shift + stage)  # [b, n_t, d₂]
        else:
            entered = functional.linear(normed, self.enter.weight, self.enter.bias + stage)
        hidden = functional.gelu(entered)
        hidden = functional.gelu(self.middle(hidden))
        return functional.gelu(self.last(hidden))

    def _question(self, inputs: StageInputs) -> Tensor:
        """Shift and gate, float32 ``[b, 2·d₂]``."""
        states = torch.cat([self._normed(state) for state in question_states(inputs)], dim=-1)  # [b, 2·d₁]
        entered: Tensor = self.question(states)
        return entered

    def _normed(self, states: Tensor) -> Tensor:
        # Residual streams grow with depth, so a fixed normalisation lets one MLP serve all stages.
        return functional.layer_norm(states.float(), (self.input_size,))


class Actor(Scorer):
    """The policy π_θ: a light MLP with a two-logit head, shared over stages. Weights are float32.

    With a residual, each stage's learned gain times the centred logarithm of the question's attention is added to
    the keep logit, and the head starts at zero: an untrained actor keeps what that score keeps at its stages.
    """

    def __init__(self, config: ActorConfig) -> None:
        super().__init__()
        self.config = config
        self.needs = config.needs
        self.trunk = Trunk(config)
        self.head = nn.Linear(config.hidden_size, 2)
        if config.residual != "none":
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
            self.gain = nn.Parameter(torch.full((config.stages,), UNIT_GAIN))

    def logits(self, inputs: StageInputs) -> Tensor:
        """Logits of (drop, keep), float32 ``[b, n_t, 2]``.

        Raises:
            ValueError: the walk did not give what `needs` states.
        """
        logits: Tensor = self.head(self.trunk(inputs))
        residual = self._residual(inputs)
        return logits if residual is None else logits + torch.stack([torch.zeros_like(residual), residual], dim=-1)

    def forward(self, inputs: StageInputs) -> Tensor:
        """Log-odds of keeping each token, float32 ``[b, n_t]``: the difference of its logits, as one product."""
        # Two logits as in the paper, but only their difference decides: one product instead of two and a subtraction.
        weight, bias = self.head.weight.diff(dim=0), self.head.bias.diff(dim=0)  # [1, d₂], [1]
        odds = functional.linear(self.trunk(inputs), weight, bias).squeeze(-1)
        residual = self._residual(inputs)
        return odds if residual is None else odds + residual

    def _residual(self, inputs: StageInputs) -> Tensor | None:
        """What the question's attention adds to the keep logit, float32 ``[b, n_t]``; None without a residual."""
        if self.config.residual == "none":
            return None
        if inputs.attention is None:
            raise ValueError("the actor adds the question's attention, but the walk gave it no attention row")
        return functional.softplus(self.gain[inputs.stage]) * _centred_log(inputs.attention[:, -1], inputs.alive)


def _centred_log(attention: Tensor, alive: Tensor | None) -> Tensor:
    """Logarithm of ``attention`` ``[b, n_t]`` less its average over each batch row's living tokens.

    Dropping tokens rescales the attention on the others, which shifts its logarithm: once centred, how two tokens
    differ does not depend on how many others are left. (Divided by the standard deviation it would.)
    """
    logarithm = attention.float().clamp(min=ATTENTION_FLOOR).log()
    counted = torch.ones_like(logarithm) if alive is None else alive.float()
    total = counted.sum(1, keepdim=True).clamp(min=1)  # [b, 1]
    return (logarithm - (logarithm * counted).sum(1, keepdim=True) / total) * counted


class Critic(nn.Module):
    """The value of a state: a trunk of the same shape, mean and max over the living tokens, one number."""

    def __init__(self, config: ActorConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config)
        self.head = nn.Linear(2 * config.hidden_size, 1)

    def forward(self, inputs: StageInputs) -> Tensor:
        """Value of each image's state, float32 ``[b]``. A batch row without a living token counts as all zeros."""
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
        self.needs = self.config.needs
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
        # On the meta device: the template only runs the actor's code, over the weights picked at each call.
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
