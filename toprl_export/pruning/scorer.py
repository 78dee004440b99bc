"""What a scorer sees at a pruning stage, what it returns, and the registry of scorers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from toprl_export.errors import UserError
from toprl_export.pruning.baselines.specs import BASELINE_SPECS, BASELINES, baseline_spec
from toprl_export.registry import Registry


@dataclass(frozen=True)
class ScorerNeeds:
    """What the walk computes for a scorer at every stage, beyond the visual tokens' own states.

    Attributes:
        attention: whose attention on the visual tokens: of no text token, of the question's last, or of all.
        attention_layer: the layer just run ("previous"; before layer 0, where none has run, layer 0 itself), or the one
            about to run ("next").
        text: the text tokens' states.
        saliency: the vision tower's attention on each patch.
        normed: states after the decoder's final norm, instead of as they enter the stage.
        key_norms: how large every token's key is in the layer just run (before layer 0 in layer 0 itself).
        embeddings: what entered layer 0, of all visual tokens and of the text.
        keep: how many tokens the stage will keep, in a graph too.
    """

    attention: Literal["none", "last", "text"] = "none"
    attention_layer: Literal["previous", "next"] = "previous"
    text: bool = False
    saliency: bool = False
    normed: bool = False
    key_norms: bool = False
    embeddings: bool = False
    keep: bool = False


@dataclass(frozen=True)
class StageInputs:
    """The state at one stage, ``s_t = [t, H_t^v]`` in TOP-RL, and what else the scorer needs.

    Attributes:
        stage: 0-based number of the stage in its plan.
        visual: float ``[b, n_t, d]``, hidden states of the visual tokens entering the stage.
        alive: bool ``[b, n_t]``, False for tokens that an earlier stage dropped but a mask keeps in
            the sequence (training); None when all are there (dropped tokens were gathered away).
        origin: int64 ``[b, n_t]``, which of its image's n visual tokens each one is (the visual origin of
            `toprl_export.models.walk`'s table), whatever earlier stages dropped.
        attention: float32 ``[b, q, n_t]``, the attention of the question's last token (q = 1) or of all t text tokens
            (q = t) on each visual token, averaged over heads; None unless needed.
        text: float ``[b, t, d]``, hidden states of the text tokens entering the stage; None unless needed.
        question_mask: bool ``[b, t]``, True for the text tokens between the image and the answer: the question and
            what the template puts around it, neither padding nor answer; None unless attention or text is needed.
        saliency: float32 ``[b, n_t]``, the vision tower's attention on each patch; None unless needed.
        key_norms: float32 ``[b, n_t + t]``, the L1 norm of each token's key over all heads, as attention uses it (with
            its position); visual tokens first; None unless needed.
        visual_embeddings: float ``[b, n, d]``, what entered layer 0 of all n visual tokens; None unless needed.
        visual_real: bool ``[b, n]``, which of these are visual tokens and not pads of rows that have fewer; None: all.
        text_embeddings: float ``[b, t, d]``, the same of the text tokens; None unless needed.
        keep: how many tokens the stage will keep, for scorers that need not score the rest; in a graph that takes it as
            an input a symbol where it is needed, else None.
        row_keep: int64 ``[b]``, where batch rows keep different numbers, of which ``keep`` is the largest; else None.
    """

    stage: int
    visual: Tensor
    alive: Tensor | None
    origin: Tensor
    attention: Tensor | None = None
    text: Tensor | None = None
    question_mask: Tensor | None = None
    saliency: Tensor | None = None
    key_norms: Tensor | None = None
    visual_embeddings: Tensor | None = None
    visual_real: Tensor | None = None
    text_embeddings: Tensor | None = None
    keep: int | None = None
    row_keep: Tensor | None = None


def question_states(inputs: StageInputs) -> tuple[Tensor, Tensor]:
    """The question's average state and its last token's state, both float32 ``[b, d]``.

    Raises:
        ValueError: the scorer's `needs` leave out the text.
    """
    if inputs.text is None or inputs.question_mask is None:
        raise ValueError("the question's states are needed, but the walk gave no text: set text=True in `needs`")
    mask, text = inputs.question_mask.unsqueeze(-1), inputs.text.float()  # [b, t, 1], [b, t, d]
    mean = (text * mask).sum(1) / mask.sum(1).clamp(min=1)
    # The largest index under the mask; padding stands before the question, answers and their padding behind it.
    order = torch.arange(inputs.question_mask.shape[1], device=text.device)
    last = (inputs.question_mask * order).argmax(1)  # [b]
    return mean, text.gather(1, last[:, None, None].expand(-1, 1, text.shape[2])).squeeze(1)


class Scorer(nn.Module, ABC):
    """Maps the state at a stage to one score per visual token; the highest are kept."""

    needs: ScorerNeeds = ScorerNeeds()
    """What ``StageInputs`` must hold for this scorer; an instance may narrow or widen its class's."""

    @abstractmethod
    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``. Those of tokens that are not alive carry no meaning."""


SCORERS: Registry[type[Scorer]] = Registry(
    "scorer",
    {"actor": "toprl_export.pruning.actor:Actor", **{spec.scorer: spec.target for spec in BASELINE_SPECS.values()}},
)
"""Every scorer's class by the name that plans carry."""


def make_scorer(name: str, seed: int = 0) -> Scorer:
    """The scorer of one of `BASELINES`, in evaluation mode; only "random" depends on the seed.

    Raises:
        UserError: the name is unknown, or it is the oracle, which needs the evidence of every batch.
    """
    spec = baseline_spec(name)
    if spec.made_from == "evidence":
        raise UserError(
            f"the {name} scores by the evidence of each image, so no single scorer serves all images: "
            f"choose one of {', '.join(BASELINES)}"
        )
    kind: Any = SCORERS.get(spec.scorer)
    scorer: Scorer = kind(seed) if spec.made_from == "seed" else kind()
    return scorer.eval()
