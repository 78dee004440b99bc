"""The one selection of tokens that training, the PyTorch reference, every baseline and every engine share."""

from __future__ import annotations

import torch
from torch import SymInt, Tensor


def select(scores: Tensor, count: int | SymInt) -> Tensor:
    """Indices of the ``count`` tokens with the highest scores, in ascending order.

    Scores are compared in float32; of equal scores the lower index wins.

    >>> select(torch.tensor([[0.1, 0.9, 0.3, 0.9], [0.5, 0.5, 0.5, 0.5]]), 2)
    tensor([[1, 3],
            [0, 1]])

    Args:
        scores: float ``[b, n]``, no NaN (infinities order as usual).
        count: how many tokens are kept, 1 to n; symbolic while exporting.

    Returns:
        int64 ``[b, count]``, each row strictly ascending, so that token order and causality hold.

    Raises:
        ValueError: ``count`` is not within 1 to n.
    """
    scores = scores.float()
    if torch.compiler.is_exporting():
        # Tells the exporter the range of a symbolic count; without it the traced sizes would need a guard.
        torch._check(count >= 1)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch._check(count <= scores.shape[1])  # type: ignore[no-untyped-call]  # as above
        # ONNX TopK breaks ties by the lower index; torch.topk promises nothing, so it is not used to compute.
        chosen = torch.topk(scores, count, dim=1).indices  # [b, count]
        # A sort, written as the `count` smallest of `count`, because TopK takes the count that the graph has already.
        return torch.topk(chosen, count, dim=1, largest=False).values
    if not 1 <= count <= scores.shape[1]:
        raise ValueError(f"cannot keep {count} of {scores.shape[1]} tokens")
    chosen = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :count]  # [b, count]
    return torch.sort(chosen, dim=1).values


def select_rows(scores: Tensor, counts: Tensor, most: int | SymInt, alive: Tensor) -> tuple[Tensor, Tensor]:
    """`select` where every batch row keeps a number of its own.

    >>> scores, alive = torch.tensor([[0.1, 0.9, 0.3, 0.5], [0.2, 0.1, 0.4, 0.3]]), torch.ones(2, 4).bool()
    >>> select_rows(scores, torch.tensor([3, 1]), 3, alive)
    (tensor([[1, 2, 3],
            [0, 2, 3]]), tensor([[ True,  True,  True],
            [False,  True, False]]))

    Args:
        scores: as for `select`.
        counts: how many tokens each row keeps, int64 ``[b]``, at least 1 and at most as many as are alive.
        most: the largest of ``counts``; symbolic while exporting.
        alive: which tokens may be kept, bool ``[b, n]``.

    Returns:
        what each row takes along, int64 ``[b, most]``, each row strictly ascending, and which of it is kept, bool of
        the same shape: rows that keep less are filled up.
    """
    scores = scores.float().masked_fill(~alive, float("-inf"))
    if torch.compiler.is_exporting():
        torch._check(most >= 1)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch._check(most <= scores.shape[1])  # type: ignore[no-untyped-call]  # as above
        best = torch.topk(scores, most, dim=1).indices  # [b, most], the best first; see `select`
        taken, rank = torch.topk(best, most, dim=1, largest=False)
    else:
        best = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :most]
        taken, rank = torch.sort(best, dim=1)
    return taken, rank < counts[:, None]


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Take the tokens ``index`` out of every row of ``x``.

    Eagerly, batch rows are flattened and selected at once. Exported, it is one gather whose index is
    repeated for each number of a token, a pattern that engines recognise as copying whole rows.

    Args:
        x: any dtype, ``[b, s, *]``.
        index: int64 ``[b, k]``, within 0 to s-1.

    Returns:
        ``[b, k, *]`` of the dtype of ``x``.
    """
    if torch.compiler.is_exporting():
        for _ in x.shape[2:]:
            index = index.unsqueeze(-1)
        return x.gather(1, index.expand(-1, -1, *x.shape[2:]))
    first = torch.arange(x.shape[0], device=x.device).unsqueeze(1) * x.shape[1]  # [b, 1]
    rows = x.flatten(0, 1).index_select(0, (first + index).flatten())  # [b * k, *]
    return rows.reshape(*index.shape, *x.shape[2:])
