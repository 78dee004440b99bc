"""What every engine does for the runtime: encode images, prefill, decode. NumPy in, NumPy out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from toprl_export.runtime.layout import TokenBatch


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """A batch of images, encoded by the vision tower.

    Attributes:
        visual: projected visual embeddings ``float32 [b, n, d]``.
        saliency: the tower's attention on each patch, ``float32 [b, n]``; None where the bundle's scorer needs none.
    """

    visual: NDArray[np.float32]
    saliency: NDArray[np.float32] | None = None

    def repeated(self, batch: int) -> EncodedImages:
        """One image for ``batch`` questions; as many images as questions stay as they are."""
        if self.visual.shape[0] == batch:
            return self
        saliency = None if self.saliency is None else np.repeat(self.saliency, batch, axis=0)  # [b, n]
        return EncodedImages(np.repeat(self.visual, batch, axis=0), saliency)  # [b, n, d]


@dataclass(frozen=True)
class PrefillRequest:
    """One batch to prefill.

    Attributes:
        tokens: b prompts.
        images: b images, encoded by the same session.
        keep_counts: tokens kept at every stage, non-increasing; n everywhere means no pruning.
        agent_index: which of the bundle's agents scores; 0 where the bundle was built from a baseline.
    """

    tokens: TokenBatch
    images: EncodedImages
    keep_counts: tuple[int, ...]
    agent_index: int


@dataclass(frozen=True)
class PrefillResult:
    """What a prefill returns.

    Attributes:
        logits: of the last position, ``float32 [b, V]``.
        cache: the engine's own; :meth:`EngineSession.decode` advances it in place.
        kept: per stage, which of the n visual tokens were kept, ascending, ``int64 [b, k_t]``.
    """

    logits: NDArray[np.float32]
    cache: Any
    kept: tuple[NDArray[np.int64], ...]


class EngineSession(Protocol):
    """A bundle opened by an engine, its weights in memory."""

    def encode_image(self, pixels: NDArray[np.float32]) -> EncodedImages:
        """``float32 [b, 3, h, w]`` to what `prefill` reads of the b images."""
        ...

    def prefill(self, request: PrefillRequest) -> PrefillResult:
        """Run the prompt and fill a new cache."""
        ...

    def decode(self, cache: Any, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token per batch row, ``[b]``; logits of the next, ``[b, V]``. The cache is advanced in place."""
        ...

    def close(self) -> None:
        """Release the weights and what is on the device; a second call does nothing, any other use is an error."""
        ...


@runtime_checkable
class BatchLimited(Protocol):
    """A session whose engine was built for a largest batch."""

    @property
    def max_batch(self) -> int:
        """Maximum number of prompts, or images, in one call."""
        ...


def largest_batch(session: EngineSession, wanted: int) -> int:
    """``wanted`` prompts, or as many as the session takes at once."""
    return min(wanted, session.max_batch) if isinstance(session, BatchLimited) else wanted
