"""Taking one token after another, the same in PyTorch and in an exported graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Take = Callable[..., tuple[Tensor, ...]]
"""``(step, chosen, *state) -> (wanted, *state)``, see :func:`greedy_order`."""


def greedy_order(
    wanted: Tensor, alive: Tensor | None, state: tuple[Tensor, ...], take: Take, steps: int
) -> tuple[Tensor, Tensor]:
    """Take the most wanted token of every row, see how that changes what is wanted, and so on.

    The order does not depend on how many tokens will be kept: fewer steps give its beginning. Of equally wanted tokens
    the lower index is taken.

    Args:
        wanted: float32 ``[b, n]``, how much each token is wanted as the first; above -inf.
        alive: bool ``[b, n]``; the others are taken only when none of these is left. None: all.
        state: tensors that ``take`` keeps from step to step; their shapes never change.
        take: called with the step (int64 scalar), the tokens just taken (int64 ``[b, 1]``) and the state; answers how
            much each token is wanted next and the new state.
        steps: how many tokens are taken, 1 to n; symbolic while exporting.

    Returns:
        int64 ``[b, n]``, at which step each token was taken, and bool ``[b, n]``, whether it was.
    """
    places = torch.arange(wanted.shape[1], device=wanted.device)
    lowest = torch.finfo(wanted.dtype).min

    def goes_on(step: Tensor, *_: Tensor) -> Tensor:
        return step < steps

    def body(step: Tensor, order: Tensor, taken: Tensor, wanted: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        if alive is not None:
            wanted = wanted.masked_fill(~alive, lowest)
        chosen = wanted.masked_fill(taken, -torch.inf).argmax(1, keepdim=True)  # [b, 1]
        new = places == chosen
        return step + 1, torch.where(new, step, order), taken | new, *take(step, chosen, *state)

    carried: tuple[Tensor, ...] = (
        torch.zeros((), dtype=torch.int64, device=wanted.device),
        torch.zeros_like(wanted, dtype=torch.int64),
        torch.zeros_like(wanted, dtype=torch.bool),
        wanted,
        *state,
    )
    if torch.compiler.is_exporting():
        carried = torch.while_loop(goes_on, body, carried)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    else:
        for _ in range(steps):
            carried = body(*carried)
    return carried[1], carried[2]


def row_of(matrix: Tensor, chosen: Tensor) -> Tensor:
    """Row ``chosen`` (int64 ``[b, 1]``) of every matrix in ``[b, n, m]``, as ``[b, m]``."""
    return matrix.gather(1, chosen.unsqueeze(-1).expand(-1, -1, matrix.shape[2])).squeeze(1)
