"""Random draws that belong to an image: the same whatever else is in its batch, and in whichever process it is."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from toprl_export.seeding import torch_generator


class ImageDraws:
    """The noise of every rollout of some images, for one stage after the other.

    Each image has a stream of its own, drawn on the CPU. At every stage it draws for all n tokens, those that are no
    longer there included, so that a token's noise depends neither on which others are left nor on how far rows are
    filled up to the longest of their batch.

    Args:
        seed: of everything random.
        stream: names that tell this batch's draws from others.
        images: where the images stand in the update's batch; rows are in this order.
        rollouts: of every image, in successive rows.
        tokens: n, visual tokens of an image.
    """

    def __init__(
        self, seed: int, stream: tuple[str | int, ...], images: Iterable[int], rollouts: int, tokens: int
    ) -> None:
        self._generators = [torch_generator(seed, *stream, image) for image in images]
        self._size = (2, rollouts, tokens)

    def noise(self, positions: Tensor) -> Tensor:
        """Standard exponential noise of the next stage's tokens, ``float32 [2, b, n_t]``.

        Args:
            positions: which of the n tokens each is, ``int64 [b, n_t]``.
        """
        drawn = [torch.empty(self._size).exponential_(generator=generator) for generator in self._generators]
        every = torch.cat(drawn, dim=1).to(positions.device)  # [2, b, n]
        return every.gather(2, positions.expand(2, -1, -1))
