"""Pruning by mask: dropped tokens stay in the sequence, but nothing attends to them (TOP-RL, Eq. 6-7)."""

from __future__ import annotations

import torch
from torch import Tensor


def neutralising_mask(allowed: Tensor, alive: Tensor) -> Tensor:
    """Who may attend to whom when dropped tokens are only neutralised: ``allowed`` and G of Eq. 6.

    ``G_ij = 1 if i = j else m_j``: a dropped token sees itself, so its softmax stays defined, and no
    other token sees it. As a boolean attention mask this puts G inside the softmax of Eq. 7, so what
    the other tokens compute equals what they compute after dropping.

    Args:
        allowed: bool ``[b, s, s]``, True where query i may attend to key j (causality, padding).
        alive: bool ``[b, s]``, m: False for dropped tokens.

    Returns:
        bool ``[b, s, s]``.
    """
    itself = torch.eye(alive.shape[1], dtype=torch.bool, device=alive.device)  # [s, s]
    return allowed & (alive.unsqueeze(1) | itself)  # [b, 1, s] | [s, s] -> [b, s, s]
