"""Baselines that keep tokens different from each other: DivPrune, DART and CDPruner.

DivPrune and CDPruner take one token after another by `greedy_order`, the same in PyTorch and in an exported graph.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from toprl_export.pruning.scorer import Scorer, ScorerNeeds, StageInputs, question_states
from toprl_export.pruning.select import gather_tokens, select

PIVOTS = 4
"""How many pivots DART takes of the visual tokens, and how many of the question's."""

_NO_VOLUME = 1e-6
"""Squared volumes below this (the largest is 1) are mostly rounding noise in float32, so they decide nothing."""

Take = Callable[..., tuple[Tensor, ...]]
"""``(step, chosen, *state) -> (priority, *state)``, see :func:`greedy_order`."""


def greedy_order(
    priority: Tensor, alive: Tensor | None, state: tuple[Tensor, ...], take: Take, steps: int
) -> tuple[Tensor, Tensor]:
    """Take the token of highest priority in every batch row, update the priorities, and so on.

    The order does not depend on how many tokens will be kept: fewer steps give its beginning. Of equal priorities
    the lower index is taken.

    Args:
        priority: float32 ``[b, n]``, of each token to be the first; above -inf.
        alive: bool ``[b, n]``; the others are taken only when none of these is left. None: all.
        state: tensors that ``take`` keeps from step to step; their shapes never change.
        take: called with the step (int64 scalar), the tokens just taken (int64 ``[b, 1]``) and the state; returns the
            priorities for the next step and the new state.
        steps: how many tokens are taken, 1 to n; symbolic while exporting.

    Returns:
        int64 ``[b, n]``, at which step each token was taken, and bool ``[b, n]``, whether it was.
    """
    index = torch.arange(priority.shape[1], device=priority.device)
    lowest = torch.finfo(priority.dtype).min

    def goes_on(step: Tensor, *_: Tensor) -> Tensor:
        return step < steps

    def body(step: Tensor, order: Tensor, taken: Tensor, priority: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        if alive is not None:
            priority = priority.masked_fill(~alive, lowest)
        chosen = priority.masked_fill(taken, -torch.inf).argmax(1, keepdim=True)  # [b, 1]
        new = index == chosen
        return step + 1, torch.where(new, step, order), taken | new, *take(step, chosen, *state)

    # Everything that changes from step to step is carried: `torch.while_loop` lets its body write nothing else.
    carried: tuple[Tensor, ...] = (
        torch.zeros((), dtype=torch.int64, device=priority.device),
        torch.zeros_like(priority, dtype=torch.int64),
        torch.zeros_like(priority, dtype=torch.bool),
        priority,
        *state,
    )
    if torch.compiler.is_exporting():
        # One Loop node for any number of steps; a Python loop would unroll into the graph.
        carried = torch.while_loop(goes_on, body, carried)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    else:
        for _ in range(steps):
            carried = body(*carried)
    return carried[1], carried[2]


def row_of(matrix: Tensor, chosen: Tensor) -> Tensor:
    """Row ``chosen`` (int64 ``[b, 1]``) of every matrix in ``[b, n, m]``, as ``[b, m]``."""
    return matrix.gather(1, chosen.unsqueeze(-1).expand(-1, -1, matrix.shape[2])).squeeze(1)


class DivPruneScorer(Scorer):
    """DivPrune (Alvar et al. 2025), its greedy solution of the max-min diversity problem; blind to the question.

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
        # Neither itself nor a dropped token counts as a token's nearest neighbour.
        excluded = torch.eye(tokens, dtype=torch.bool, device=distance.device).unsqueeze(0)
        if inputs.alive is not None:
            excluded = excluded | ~inputs.alive.unsqueeze(1)
        nearest = distance.masked_fill(excluded, torch.inf).amin(2)  # [b, n_t]

        def take(step: Tensor, chosen: Tensor, nearest: Tensor) -> tuple[Tensor, ...]:
            del step
            nearest = torch.minimum(nearest, row_of(distance, chosen))
            return nearest.clone(), nearest  # a copy: two outputs of an exported loop must not be one tensor

        order, taken = greedy_order(nearest, inputs.alive, (torch.full_like(nearest, torch.inf),), take, steps)
        return -torch.where(taken, order, tokens).float()


class DARTScorer(Scorer):
    """DART (Wen et al. 2025): keeps the visual pivots and, for every pivot, equally many of the tokens least like it.

    By its authors' code: pivots are the four visual and the four question tokens whose keys have the largest L1 norm in
    the layer just run (at the input in layer 0, where the authors never prune). States are compared after the decoder's
    final norm, by cosine. The pivots take their shares in turn, the visual ones first, each kind by ascending position
    (the authors leave their order to a Python set): each takes the tokens least like it of those still left, and what
    it takes is gone for the next. The authors keep four pivots *and* eight shares of an eighth of the keep count; here
    the shares are of what the pivots leave, so that the keep count is met, and the first pivots take one more where
    it cannot be divided.
    """

    needs = ScorerNeeds(text=True, normed=True, key_norms=True, keep=True)

    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``: 2 for visual pivots, 1 for tokens that a pivot takes, 0 for the others.

        Raises:
            ValueError: the text, the keys' norms or the keep count are missing.
        """
        text, norms = inputs.text, inputs.key_norms
        keep = inputs.keep if inputs.row_keep is None else inputs.row_keep
        if text is None or inputs.question_mask is None or norms is None or keep is None:
            raise ValueError("DART shares the keep count out among pivots, but the walk gave it no text, keys or count")
        tokens = inputs.visual.shape[1]
        alive = torch.ones_like(inputs.origin, dtype=torch.bool) if inputs.alive is None else inputs.alive
        visual = torch.cat([alive, torch.zeros_like(inputs.question_mask)], dim=1)  # [b, n_t + t]
        question = torch.cat([torch.zeros_like(alive), inputs.question_mask], dim=1)
        pivots = torch.cat([_largest(norms, visual), _largest(norms, question)], dim=1)  # [b, 8]
        # With fewer than four eligible tokens the rest of the four are padding, which must not take anything.
        real = torch.cat([visual.gather(1, pivots[:, :PIVOTS]), question.gather(1, pivots[:, PIVOTS:])], dim=1)
        places = torch.arange(tokens, device=pivots.device)
        own = ((places == pivots[:, :PIVOTS, None]) & real[:, :PIVOTS, None]).any(1)  # [b, n_t]
        states = torch.cat([inputs.visual, text], dim=1).float()  # [b, n_t + t, d]
        similarity = normalize(gather_tokens(states, pivots), dim=-1) @ normalize(inputs.visual.float(), dim=-1).mT
        left, taken = alive & ~own, torch.zeros_like(own)
        for pivot, share in enumerate(_shares(keep - own.sum(1), real)):
            ranks = _ranks(similarity[:, pivot].masked_fill(~left, torch.inf))  # [b, n_t]
            takes = left & (ranks < share.unsqueeze(1))
            left, taken = left & ~takes, taken | takes
        return 2.0 * own.float() + taken.float()


def _shares(rest: Tensor, real: Tensor) -> tuple[Tensor, ...]:
    """How many tokens each pivot takes of ``rest``, int64 ``[b]`` each: equally many, the first ones one more."""
    before = real.long().cumsum(1) - 1  # how many real pivots come before each
    number = real.long().sum(1, keepdim=True).clamp(min=1)
    rest = rest.clamp(min=0).unsqueeze(1)
    each = torch.div(rest, number, rounding_mode="floor")
    shares = (each + (before < rest - each * number).long()) * real.long()  # [b, 8]
    return shares.unbind(1)


def _largest(norms: Tensor, eligible: Tensor) -> Tensor:
    """The four of ``norms [b, s]`` that are largest, eligible ones first, int64 ``[b, 4]``."""
    return select(norms.masked_fill(~eligible, -1.0), PIVOTS)


def _ranks(values: Tensor) -> Tensor:
    """The place of each value in the ascending order of its row; of equal values the lower index comes first."""
    # No stable sort can be exported; ONNX TopK, which the plain one becomes, breaks ties by the lower index itself.
    plain = torch.compiler.is_exporting()
    order = values.argsort(dim=-1) if plain else values.argsort(dim=-1, stable=True)
    places = torch.arange(values.shape[-1], device=values.device).expand_as(order)
    return torch.zeros_like(order).scatter(-1, order, places)


class CDPrunerScorer(Scorer):
    """CDPruner (Zhang et al. 2025): diverse tokens given the question, by a determinantal point process.

    Greedy maximum of ``det(diag(r) L diag(r))`` over subsets, by the fast algorithm of Chen et al. 2018. L holds the
    cosine similarities of the visual tokens, r their relevance to the question, min-max normalised per image. The
    paper takes r from CLIP's text tower (its code with the sign turned, for CLIP's patches resemble a text the less the
    more they have to do with it); a decoder has none, so r is the cosine similarity with the mean of the question's
    token embeddings. The score is the negative place in the greedy order. What adds no volume that float32 can tell, at
    the latest when as many tokens are taken as embeddings have dimensions, follows by relevance. A graph, in which k is
    an input, computes the order of as many, and holds for the one number of tokens it was traced with.
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
            # The next row of the Cholesky factor: what of the chosen token's row earlier tokens do not explain.
            rest = row_of(kernel, chosen) - (known.transpose(1, 2) @ factors).squeeze(1)
            row = torch.where(gain > _NO_VOLUME, rest / gain.clamp(min=_NO_VOLUME).sqrt(), 0.0)  # [b, n_t]
            gains = gains - row.square()
            return _priority(gains, relevance), gains, _with_row(factors, step, row)

        order, taken = greedy_order(_priority(gains, relevance), inputs.alive, (gains, factors), take, steps)
        # Tokens taken score 1 or more, so the others, by relevance within [0, 1/2], come after them.
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


def _priority(gains: Tensor, relevance: Tensor) -> Tensor:
    """Tokens that add volume come first, by how much; the others, below them all, by relevance."""
    return torch.where(gains > _NO_VOLUME, gains, relevance - 2)


def _with_row(rows: Tensor, place: Tensor, row: Tensor) -> Tensor:
    """``rows [b, s, n]`` with ``row [b, n]`` at ``place``; written in place where nothing is being traced."""
    if torch.compiler.is_exporting():
        here = torch.arange(rows.shape[1], device=rows.device) == place
        return torch.where(here[None, :, None], row.unsqueeze(1), rows)
    rows[:, place] = row
    return rows
