"""Parity: does the engine keep the same tokens and compute the same numbers as PyTorch?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray

from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.runtime.session import PrefillRequest
from toprl_export.validate.answers import Contender, QuestionBatch, Tokens, needed_saliency
from toprl_export.validate.report import Parity


def measure_parity(
    engine: Contender,
    reference: ReferenceRunner,
    pruning: Pruning,
    batches: Iterable[QuestionBatch],
    engine_tokens: Tokens,
    reference_tokens: Tokens,
) -> Parity:
    """Compare prefills of the engine with those of PyTorch, each from the same pixels through its own vision tower.

    Args:
        engine: the bundle at one budget.
        reference: PyTorch with gathered tokens.
        pruning: the bundle's scorer with the budget's keep counts.
        batches: the questions.
        engine_tokens: what the engine answered, to the same or to other questions.
        reference_tokens: what the pruned reference answered to those.
    """
    overlaps: list[NDArray[np.float64]] = []
    free: list[float] = []
    forced: list[float] = []
    for batch in batches:
        images = engine.session.encode_image(batch.pixels)
        request = PrefillRequest(batch.tokens, images, engine.keep_counts, engine.agent_index)
        result = engine.session.prefill(request)
        own_visual = reference.encode_image(batch.pixels)
        saliency = needed_saliency(reference, batch.pixels, pruning.scorer)
        own = reference.prefill(batch.tokens, own_visual, pruning, saliency=saliency)
        overlaps.append(kept_overlap(result.kept, [kept.cpu().numpy() for kept in own.kept]))
        free.append(_largest_error(result.logits, own.logits))
        replay = [torch.from_numpy(np.ascontiguousarray(kept)) for kept in result.kept]
        replayed = reference.prefill(batch.tokens, own_visual, pruning, forced_kept=replay)
        forced.append(_largest_error(result.logits, replayed.logits))
    shares = np.concatenate(overlaps)  # [questions, stages]
    return Parity(
        kept_overlap_per_stage=tuple(map(float, shares.mean(axis=0))),
        logit_error_free=_finite(free),
        logit_error_forced=_finite(forced),
        greedy_agreement=token_agreement(engine_tokens, reference_tokens),
        n=len(shares),
    )


def kept_overlap(one: Sequence[NDArray[np.int64]], other: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """For each row and stage the share of tokens that both keep, ``[b, stages]``; sets are compared, not orders.

    Raises:
        ValueError: stages or shapes differ.
    """
    if [kept.shape for kept in one] != [kept.shape for kept in other]:
        raise ValueError(f"kept sets of shapes {[k.shape for k in one]} and {[k.shape for k in other]} are no pair")
    columns = []
    for mine, theirs in zip(one, other, strict=True):
        common = [len(np.intersect1d(*rows)) for rows in zip(mine, theirs, strict=True)]
        columns.append(np.array(common) / mine.shape[1])
    return np.stack(columns, axis=1)


def token_agreement(one: Tokens, other: Tokens) -> float:
    """The share of positions at which both generated the same token; ending counts as a token."""
    ends = [[*row, None] for row in one], [[*row, None] for row in other]
    pairs = [pair for rows in zip(*ends, strict=True) for pair in zip_longest(*rows, fillvalue="absent")]
    return sum(mine == theirs for mine, theirs in pairs) / len(pairs)


def _largest_error(logits: NDArray[np.float32], wanted: torch.Tensor) -> float:
    return float(np.abs(logits - wanted.cpu().numpy()).max())


def _finite(errors: Sequence[float]) -> float | None:
    """The largest error, None when one is no finite number."""
    return max(errors) if all(map(math.isfinite, errors)) else None
