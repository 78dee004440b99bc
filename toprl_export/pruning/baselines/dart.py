"""DART (Wen et al. 2025): tokens that repeat a few pivot tokens the least."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from toprl_export.pruning.scorer import Scorer, ScorerNeeds, StageInputs
from toprl_export.pruning.select import gather_tokens, select

PIVOTS = 4
"""How many pivots are taken of the visual tokens, and how many of the question's."""


class DARTScorer(Scorer):
    """Keeps the visual pivots and, for every pivot, equally many of the tokens least similar to it.

    The paper retains of each pivot p the tokens x with ``cos(p, x) <= ε_p`` and unites these sets, with ε_p set by the
    number of tokens to keep. Here every ε_p lets as many tokens through as the others, so a token stays when one of
    the pivots ranks it low enough: the score is the negative of its best rank, which serves every number of tokens to
    keep. The paper's code instead gives one pivot after the other its share of the tokens that are left. It compares
    states after the decoder's norm, here they are compared as they are. Pivots are the tokens whose states have the
    largest L1 norm, where the paper takes that of their keys, which at the input no layer has computed yet; it reports
    that the choice of pivots matters little.
    """

    needs = ScorerNeeds(text=True)

    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``: 1 for visual pivots, 0 and below for the others.

        Raises:
            ValueError: the text was not computed.
        """
        if inputs.text is None or inputs.question_mask is None:
            raise ValueError("DART takes pivots of the question, but the walk gave it no text")
        tokens = inputs.visual.shape[1]
        alive = torch.ones_like(inputs.positions, dtype=torch.bool) if inputs.alive is None else inputs.alive
        # One sequence, so that there are enough rows to take four of even where the question is shorter.
        states = torch.cat([inputs.visual, inputs.text], dim=1).float()  # [b, n_t + t, d]
        visual = torch.cat([alive, torch.zeros_like(inputs.question_mask)], dim=1)
        question = torch.cat([torch.zeros_like(alive), inputs.question_mask], dim=1)
        pivots = torch.cat([_largest(states, visual), _largest(states, question)], dim=1)  # [b, 8]
        real = torch.cat([visual.gather(1, pivots[:, :PIVOTS]), question.gather(1, pivots[:, PIVOTS:])], dim=1)
        places = torch.arange(tokens, device=pivots.device)
        own = ((places == pivots[:, :PIVOTS, None]) & real[:, :PIVOTS, None]).any(1)  # [b, n_t]
        duplication = normalize(gather_tokens(states, pivots), dim=-1) @ normalize(states[:, :tokens], dim=-1).mT
        ranks = _ranks(duplication.masked_fill((own | ~alive).unsqueeze(1), torch.inf))  # [b, 8, n_t]
        best = torch.where(real.unsqueeze(-1), ranks, tokens).amin(1)
        return torch.where(own, 1.0, -best.float())


def _largest(states: Tensor, eligible: Tensor) -> Tensor:
    """The four of ``states [b, s, d]`` with the largest L1 norm, eligible ones first, int64 ``[b, 4]``."""
    norms = states.abs().sum(-1)
    return select(norms.masked_fill(~eligible, -1.0), PIVOTS)


def _ranks(values: Tensor) -> Tensor:
    """The place of each value in the ascending order of its row; of equal values the lower index comes first."""
    # No stable sort can be exported; ONNX TopK, which the plain one becomes, breaks ties by the lower index itself.
    plain = torch.compiler.is_exporting()
    order = values.argsort(dim=-1) if plain else values.argsort(dim=-1, stable=True)
    places = torch.arange(values.shape[-1], device=values.device).expand_as(order)
    return torch.zeros_like(order).scatter(-1, order, places)
