"""CDPruner (Zhang et al. 2025): tokens that are diverse given the question, by a determinantal point process."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from toprl_export.pruning.baselines.greedy import greedy_order, row_of
from toprl_export.pruning.scorer import Scorer, ScorerNeeds, StageInputs, question_states

_NO_VOLUME = 1e-6
"""Squared volumes below this (the largest is 1) are mostly rounding noise in float32, so they decide nothing."""


class CDPrunerScorer(Scorer):
    """Greedy maximum of ``det(diag(r) L diag(r))`` over subsets, by the fast algorithm of Chen et al. 2018.

    L holds the cosine similarities of the visual tokens, r their relevance to the question, min-max normalised per
    image. The paper takes r from CLIP's text tower (its code with the sign turned, for CLIP's patches resemble a text
    the less the more they have to do with it); a decoder has none, so r is the cosine similarity with the mean of the
    question's token embeddings. The score is the negative place in the greedy order. What adds no volume that float32
    can tell, at the latest when as many tokens are taken as embeddings have dimensions, follows by relevance. A graph,
    in which k is an input, computes the order of as many, and holds for the one number of tokens it was traced with.
    """

    needs = ScorerNeeds(text=True)

    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``: n_t for the token taken first, then one less each.

        Raises:
            ValueError: the text was not computed.
        """
        tokens, width = inputs.visual.shape[1:]
        relevance = question_relevance(inputs)
        vectors = normalize(inputs.visual.float(), dim=-1) * relevance.unsqueeze(-1)
        kernel = vectors @ vectors.transpose(1, 2)  # [b, n_t, n_t]
        steps = min(tokens, width) if inputs.keep is None else min(inputs.keep, tokens, width)
        gains = vectors.square().sum(-1)  # [b, n_t]: squared volume that each token would add, the diagonal at first
        factors = kernel.new_zeros(kernel.shape[0], steps, tokens)  # rows of the Cholesky factor, one per step

        def take(step: Tensor, chosen: Tensor, gains: Tensor, factors: Tensor) -> tuple[Tensor, ...]:
            gain = gains.gather(1, chosen)  # [b, 1]
            known = factors.gather(2, chosen.unsqueeze(1).expand(-1, factors.shape[1], -1))  # [b, steps, 1]
            rest = row_of(kernel, chosen) - (known.transpose(1, 2) @ factors).squeeze(1)
            row = torch.where(gain > _NO_VOLUME, rest / gain.clamp(min=_NO_VOLUME).sqrt(), 0.0)  # [b, n_t]
            gains = gains - row.square()
            return _wanted(gains, relevance), gains, _with_row(factors, step, row)

        order, taken = greedy_order(_wanted(gains, relevance), inputs.alive, (gains, factors), take, steps)
        # Below every token taken, by relevance.
        return torch.where(taken, (tokens - order).float(), relevance / 2)


def question_relevance(inputs: StageInputs) -> Tensor:
    """Cosine similarity of each token with the mean question token, float32 ``[b, n_t]``; living ones span 0 to 1.

    Raises:
        ValueError: the text was not computed.
    """
    question = normalize(question_states(inputs)[0], dim=-1)  # [b, d]
    similarity = (normalize(inputs.visual.float(), dim=-1) @ question.unsqueeze(-1)).squeeze(-1)
    if inputs.alive is None:
        low, high = similarity.amin(1, keepdim=True), similarity.amax(1, keepdim=True)
    else:
        low = similarity.masked_fill(~inputs.alive, torch.inf).amin(1, keepdim=True)
        high = similarity.masked_fill(~inputs.alive, -torch.inf).amax(1, keepdim=True)
    return ((similarity - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)).clamp(0, 1)


def _wanted(gains: Tensor, relevance: Tensor) -> Tensor:
    """Tokens that add volume by how much, the others below them all by relevance."""
    return torch.where(gains > _NO_VOLUME, gains, relevance - 2)


def _with_row(rows: Tensor, place: Tensor, row: Tensor) -> Tensor:
    """``rows [b, s, n]`` with ``row [b, n]`` at ``place``; written in place where nothing is being traced."""
    if torch.compiler.is_exporting():
        here = torch.arange(rows.shape[1], device=rows.device) == place
        return torch.where(here[None, :, None], row.unsqueeze(1), rows)
    rows[:, place] = row
    return rows
