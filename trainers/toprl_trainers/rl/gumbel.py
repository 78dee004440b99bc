"""Keep masks: independent two-way Gumbel-Softmax draws at a temperature, and their probabilities.

A hard Gumbel-Softmax sample does not depend on the temperature when only the softmax is divided by it. Here the
logits themselves are divided by τ, so the hard sample keeps a token with probability ``sigmoid(logit / τ)`` and
annealing τ moves the policy from exploration to top-k.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def temperature_at(progress: float, start: float, end: float) -> float:
    """τ after the share ``progress`` in [0, 1] of training, falling geometrically from ``start`` to ``end``."""
    return start * math.exp(progress * math.log(end / start))


def sample_keep(logits: Tensor, temperature: float, noise: Tensor) -> Tensor:
    """Draw a hard keep mask.

    Args:
        logits: keep logit minus drop logit, ``float32 [b, n]``.
        temperature: τ > 0.
        noise: independent standard exponential draws, ``float32 [2, b, n]``, from which the Gumbel noise is made.

    Returns:
        ``bool [b, n]``, true with probability ``sigmoid(logits / τ)``.
    """
    # −log of a standard exponential is a standard Gumbel; the clamp keeps an exact 0 from becoming infinite.
    keep_noise, drop_noise = -noise.clamp(min=1e-30).log()
    kept: Tensor = logits / temperature + keep_noise > drop_noise
    return kept


def log_probability(logits: Tensor, kept: Tensor, temperature: float) -> Tensor:
    """Log-probability of each token's decision under `sample_keep`, ``float32 [b, n]``."""
    return F.logsigmoid(torch.where(kept, logits, -logits) / temperature)


def entropy(logits: Tensor, temperature: float) -> Tensor:
    """Entropy of each token's decision in nats, ``float32 [b, n]``."""
    scaled = logits / temperature
    probability = torch.sigmoid(scaled)
    return F.softplus(scaled) - scaled * probability


def threshold_for_count(scores: Tensor, alive: Tensor, count: float, temperature: float) -> Tensor:
    """Threshold at which each row keeps ``count`` tokens on average: ``Σ sigmoid((score − threshold) / τ) = count``.

    As τ goes to 0 this is the score between the ``count``-th and the next token, so sampling becomes the top-k
    selection that serves at inference. Found by bisection, which is monotone and therefore safe for any scores.

    Args:
        scores: ``float32 [b, n]``.
        alive: which tokens exist, ``bool [b, n]``.
        count: wanted expected number kept; rows with no more tokens than that keep (nearly) all of them.
        temperature: τ > 0.

    Returns:
        ``float32 [b, 1]``.
    """
    margin = 20.0 * temperature  # sigmoid(±20) is 1 or 0 within 2e-9, so the bracket holds the solution
    some = alive.any(1, keepdim=True)  # a row without tokens gets any finite threshold
    low = scores.masked_fill(some & ~alive, float("inf")).amin(1, keepdim=True) - margin
    high = scores.masked_fill(some & ~alive, float("-inf")).amax(1, keepdim=True) + margin
    for _ in range(50):  # halves the bracket below float32's resolution
        middle = (low + high) / 2
        expected = (torch.sigmoid((scores - middle) / temperature) * alive).sum(1, keepdim=True)
        low = torch.where(expected > count, middle, low)
        high = torch.where(expected > count, high, middle)
    return (low + high) / 2
