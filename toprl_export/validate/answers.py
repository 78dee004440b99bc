"""Held-out questions in batches, and a session's answers to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from toprl_export.manifest import Manifest
from toprl_export.runtime.generation import GenerationRequest, generate
from toprl_export.runtime.prompt import TokenBatch
from toprl_export.runtime.session import EncodedImages, EngineSession
from toprl_export.tasks.task import Sample

if TYPE_CHECKING:
    from torch import Tensor

    from toprl_export.models.reference import ReferenceRunner
    from toprl_export.pruning.scorer import Scorer

MAX_NEW_TOKENS = 16
Tokens = list[list[int]]
"""New token ids per row, the end token left out."""


@dataclass(frozen=True)
class Contender:
    """A session and how it is asked."""

    session: EngineSession
    keep_counts: tuple[int, ...]
    agent_index: int


@dataclass(frozen=True)
class QuestionBatch:
    """Some questions, ready for a model: pixels ``float32 [b, 3, h, w]``, tokenised prompts and the right answers."""

    pixels: NDArray[np.float32]
    tokens: TokenBatch
    answers: tuple[str, ...]


def question_batches(
    samples: Sequence[Sample], manifest: Manifest, tokenizer: Tokenizer, size: int
) -> Iterator[QuestionBatch]:
    """The samples in batches of ``size`` (the last may be smaller), prepared as the bundle does it."""
    for start in range(0, len(samples), size):
        chosen = samples[start : start + size]
        questions = [sample.question for sample in chosen]
        yield QuestionBatch(
            manifest.image_processor([sample.image for sample in chosen]),
            manifest.prompt.tokenize(tokenizer, questions, manifest.model.visual_tokens, manifest.model.max_length),
            tuple(sample.answer for sample in chosen),
        )


def greedy_tokens(
    contender: Contender,
    batch: QuestionBatch,
    images: EncodedImages,
    tokenizer: Tokenizer,
    end_tokens: tuple[int, ...],
) -> Tokens:
    """Answers by the runtime's own loop, about images that the session has encoded before."""
    request = GenerationRequest(
        pixels=batch.pixels,
        tokens=batch.tokens,
        keep_counts=contender.keep_counts,
        agent_index=contender.agent_index,
        max_new_tokens=MAX_NEW_TOKENS,
        end_tokens=end_tokens,
    )
    return [list(row) for row in generate(_Encoded(contender.session, images), tokenizer, request).token_ids]


class _Encoded:
    """A session whose images are encoded already, so that all budgets share one pass of the vision tower."""

    def __init__(self, session: EngineSession, images: EncodedImages) -> None:
        self._images = images
        self.prefill = session.prefill
        self.decode = session.decode

    def encode_image(self, pixels: NDArray[np.float32]) -> EncodedImages:
        """What was made from these pixels."""
        del pixels
        return self._images

    def close(self) -> None:
        """Nothing: the session belongs to the caller."""


def needed_saliency(runner: ReferenceRunner, pixels: NDArray[np.float32], scorer: Scorer) -> Tensor | None:
    """The vision tower's attention on each patch, ``float32 [b, n]``, where ``scorer`` asks for it, else None."""
    return runner.saliency(pixels) if scorer.needs.saliency else None


def decode_texts(tokenizer: Tokenizer, rows: Tokens) -> list[str]:
    """The rows as texts, without special tokens."""
    return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
