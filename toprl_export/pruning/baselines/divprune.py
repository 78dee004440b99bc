"""DivPrune (Alvar et al. 2025): tokens that are as far from each other as possible."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from toprl_export.pruning.baselines.greedy import greedy_order, row_of
from toprl_export.pruning.scorer import Scorer, StageInputs


class DivPruneScorer(Scorer):
    """The paper's greedy solution of the max-min diversity problem; blind to the question.

    The first token is the one farthest from its nearest neighbour, each further one the one farthest from the nearest
    token already taken, by cosine distance. The score is the negative place in that order, so the best k are the
    paper's k for every k. A graph, in which k is an input, computes the order of all n tokens.
    """

    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``: 0 for the token taken first, then one less each; -n_t for those not taken."""
        tokens = inputs.visual.shape[1]
        steps = tokens if inputs.keep is None else min(inputs.keep, tokens)
        vectors = normalize(inputs.visual.float(), dim=-1)
        distance = 1 - vectors @ vectors.transpose(1, 2)  # [b, n_t, n_t]
        nobody = torch.eye(tokens, dtype=torch.bool, device=distance.device).unsqueeze(0)
        if inputs.alive is not None:
            nobody = nobody | ~inputs.alive.unsqueeze(1)
        nearest = distance.masked_fill(nobody, torch.inf).amin(2)  # [b, n_t]

        def take(step: Tensor, chosen: Tensor, nearest: Tensor) -> tuple[Tensor, ...]:
            del step
            nearest = torch.minimum(nearest, row_of(distance, chosen))
            return nearest.clone(), nearest

        order, taken = greedy_order(nearest, inputs.alive, (torch.full_like(nearest, torch.inf),), take, steps)
        return -torch.where(taken, order, tokens).float()
