"""What every engine does for the runtime: encode images, prefill, decode. NumPy in, NumPy out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from toprl_export.errors import UserError
from toprl_export.runtime.layout import TokenBatch

KeepCounts: TypeAlias = "tuple[int, ...] | NDArray[np.int64]"
"""How many tokens every stage keeps: one number each, or of each prompt its own, ``int64 [b, T]``."""


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """A batch of images, encoded by the vision tower.

    Attributes:
        visual: projected visual embeddings ``float32 [b, n, d]``, or where n differs from picture to picture the rows
            ``[r, d]`` of all of them, of which prompts name their own (`TokenBatch.visual_rows`).
        saliency: the tower's attention on each patch, ``float32 [b, n]``; None where the bundle's scorer needs none.
    """

    visual: NDArray[np.float32]
    saliency: NDArray[np.float32] | None = None

    def repeated(self, batch: int) -> EncodedImages:
        """One image for ``batch`` questions; as many images as questions, and rows, stay as they are."""
        if self.visual.ndim == 2 or self.visual.shape[0] == batch:
            return self
        saliency = None if self.saliency is None else np.repeat(self.saliency, batch, axis=0)  # [b, n]
        return EncodedImages(np.repeat(self.visual, batch, axis=0), saliency)  # [b, n, d]


@dataclass(frozen=True)
class PrefillRequest:
    """One batch to prefill.

    Attributes:
        tokens: b prompts.
        images: b images, encoded by the same session.
        keep_counts: tokens kept at every stage, non-increasing; n everywhere means no pruning. Where n differs from
            prompt to prompt, of each prompt its own, ``int64 [b, T]``.
        agent_index: which of the bundle's agents scores; 0 where the bundle was built from a baseline.
    """

    tokens: TokenBatch
    images: EncodedImages
    keep_counts: KeepCounts
    agent_index: int


@dataclass(frozen=True)
class PrefillResult:
    """What a prefill returns.

    Attributes:
        logits: of the last position, ``float32 [b, V]``.
        cache: the engine's own; :meth:`EngineSession.decode` advances it in place.
        kept: per stage, which of the n visual slots were kept, ascending, ``int64 [b, k_t]``; where prompts keep
            different numbers, those that keep less are filled up with slots that no later token sees.
    """

    logits: NDArray[np.float32]
    cache: Any
    kept: tuple[NDArray[np.int64], ...]


def one_for_all(keep_counts: KeepCounts) -> tuple[int, ...]:
    """Keep counts that all prompts share.

    Raises:
        UserError: each prompt has its own.
    """
    if isinstance(keep_counts, tuple):
        return keep_counts
    raise UserError("this engine keeps as many tokens of every prompt: give one keep count a stage")


class EngineSession(Protocol):
    """A bundle opened by an engine, its weights in memory."""

    def encode(self, pictures: Mapping[str, NDArray[Any]]) -> EncodedImages:
        """What the tower takes (`toprl_export.runtime.layout.Pictures.arrays`) to what `prefill` reads of it."""
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
