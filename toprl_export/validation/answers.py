"""The held-out questions, answered by everything that is compared: accuracy, and parity of engine and PyTorch.

One pass over the questions serves all budgets: every image is encoded once by the reference model and once by the
engine, and all answers and parity figures start from these encodings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.runtime.generation import GenerationRequest, generate
from toprl_export.runtime.layout import TokenBatch
from toprl_export.runtime.session import EncodedImages, EngineSession, PrefillRequest
from toprl_export.tasks.metrics import difference_interval, retention_interval
from toprl_export.tasks.task import Task
from toprl_export.validation.costs import MeasuredSession
from toprl_export.validation.report import Accuracy, AccuracyComparison, Interval, Parity, Scores, WrongAnswer

SHOWN_WRONG_ANSWERS = 5

Tokens = list[list[int]]
"""New token ids of each question, the end token left out."""


@dataclass(frozen=True)
class QuestionBatch:
    """Questions ready for a model: what the tower takes by name, prompts as tokens, their texts, and the answers."""

    pictures: Mapping[str, NDArray[Any]]
    tokens: TokenBatch
    questions: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class EncodedQuestions:
    """Questions whose images are encoded by both vision towers.

    Attributes:
        tokens: the prompts.
        reference: the images, encoded by the reference model's tower.
        engine: the images, encoded by the engine's tower.
        saliency: the reference tower's attention on each patch, ``float32 [b, n]``; None where the scorer needs none.
    """

    tokens: TokenBatch
    reference: EncodedImages
    engine: EncodedImages
    saliency: Tensor | None

    @classmethod
    def encode(
        cls, batch: QuestionBatch, stock: EngineSession, engine: EngineSession, runner: ReferenceRunner, saliency: bool
    ) -> EncodedQuestions:
        """Encode the images with both towers; with ``saliency``, compute the reference tower's attention too."""
        looked_at = runner.saliency(batch.pictures["pixel_values"]) if saliency else None
        return cls(batch.tokens, stock.encode(batch.pictures), engine.encode(batch.pictures), looked_at)

    def part(self, start: int, tokens: TokenBatch) -> EncodedQuestions:
        """The questions from ``start`` on that ``tokens`` are of, padded among themselves."""
        chosen = slice(start, start + tokens.batch)
        return EncodedQuestions(
            tokens,
            _images(self.reference, chosen),
            _images(self.engine, chosen),
            None if self.saliency is None else self.saliency[chosen],
        )

    def visual(self, device: torch.device) -> Tensor:
        """The reference's visual embeddings ``[b, n, d]`` as its walk takes them."""
        return torch.from_numpy(self.reference.visual).to(device)


def _images(images: EncodedImages, chosen: slice) -> EncodedImages:
    return EncodedImages(images.visual[chosen], None if images.saliency is None else images.saliency[chosen])


@dataclass(frozen=True)
class PrunedRuns:
    """What is compared at one budget: the engine, its scorer in PyTorch, and random pruning with as many tokens."""

    engine: MeasuredSession
    reference: Pruning
    random: Pruning


@dataclass
class Answers:
    """Token ids of every question, in order: of the unpruned reference, and of the pruned runs by budget."""

    expected: list[str] = field(default_factory=list)
    reference: Tokens = field(default_factory=list)
    engine: dict[int, Tokens] = field(default_factory=dict)
    pruned_reference: dict[int, Tokens] = field(default_factory=dict)
    random: dict[int, Tokens] = field(default_factory=dict)

    def add(
        self,
        questions: EncodedQuestions,
        expected: Sequence[str],
        stock: MeasuredSession,
        budgets: Mapping[int, PrunedRuns],
        runner: ReferenceRunner,
        max_new_tokens: int,
    ) -> None:
        """Answer some questions greedily, unpruned and in three ways at each budget."""
        adapter = runner.adapter
        visual = questions.visual(adapter.device)
        self.expected += expected
        limits = adapter.tokenizer, adapter.end_tokens, max_new_tokens
        self.reference += greedy_tokens(stock, questions.tokens, questions.reference, *limits)
        for budget, runs in budgets.items():
            own = greedy_tokens(runs.engine, questions.tokens, questions.engine, *limits)
            self.engine.setdefault(budget, []).extend(own)
            for found, pruning in ((self.pruned_reference, runs.reference), (self.random, runs.random)):
                made = runner.generate(questions.tokens, visual, max_new_tokens, pruning, questions.saliency)
                found.setdefault(budget, []).extend(made.tokens)


def greedy_tokens(
    session: MeasuredSession,
    tokens: TokenBatch,
    images: EncodedImages,
    tokenizer: Tokenizer,
    end_tokens: tuple[int, ...],
    max_new_tokens: int,
) -> Tokens:
    """Answers by the runtime's own loop, about images that the session has encoded before."""
    request = GenerationRequest(
        pictures={"pixel_values": np.empty((tokens.batch, 0), np.float32)},  # never looked at
        tokens=tokens,
        keep_counts=session.keep_counts,
        agent_index=session.agent_index,
        max_new_tokens=max_new_tokens,
        end_tokens=end_tokens,
    )
    return [list(row) for row in generate(_Encoded(session.session, images), tokenizer, request).token_ids]


class _Encoded:
    """A session whose images are encoded already."""

    def __init__(self, session: EngineSession, images: EncodedImages) -> None:
        self._images = images
        self.prefill = session.prefill
        self.decode = session.decode

    def encode(self, pictures: Mapping[str, NDArray[Any]]) -> EncodedImages:
        """The images' encodings, whatever the pictures."""
        del pictures
        return self._images

    def close(self) -> None:
        """Nothing: the session belongs to the caller."""


@dataclass(frozen=True)
class Retention:
    """One budget's accuracies and what follows from them."""

    accuracy: AccuracyComparison
    scores: Scores
    retention: float | None
    retention_ci95: Interval | None
    engine_minus_random_ci95: Interval
    wrong_answers: tuple[WrongAnswer, ...]


def judge_answers(
    task: Task, tokenizer: Tokenizer, questions: Sequence[str], answers: Answers, budget: int, seed: int
) -> Retention:
    """Score one budget's answers to ``questions``; ``seed`` is that of the bootstrap."""
    texts = {
        name: [tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
        for name, tokens in (
            ("reference", answers.reference),
            ("pruned_reference", answers.pruned_reference[budget]),
            ("engine", answers.engine[budget]),
            ("random", answers.random[budget]),
        )
    }
    correct = {name: _correctness(task, predicted, answers.expected) for name, predicted in texts.items()}
    wrong = [index for index, score in enumerate(correct["engine"]) if score < 1][:SHOWN_WRONG_ANSWERS]
    # Retention is a share of the reference's right answers, so there is none where it has none.
    kept = retention_interval(correct["engine"], correct["reference"], seed) if any(correct["reference"]) else None
    return Retention(
        accuracy=AccuracyComparison(**{name: _accuracy(task, one, answers.expected) for name, one in texts.items()}),
        scores=Scores.of(correct),
        retention=kept.value if kept else None,
        retention_ci95=kept.ci95 if kept else None,
        engine_minus_random_ci95=difference_interval(correct["engine"], correct["random"], seed).ci95,
        wrong_answers=tuple(
            WrongAnswer(at, questions[at], answers.expected[at], texts["engine"][at], texts["reference"][at])
            for at in wrong
        ),
    )


def _correctness(task: Task, predicted: Sequence[str], expected: Sequence[str]) -> list[float]:
    return [task.score(one, answer) for one, answer in zip(predicted, expected, strict=True)]


def _accuracy(task: Task, predicted: Sequence[str], expected: Sequence[str]) -> Accuracy:
    summary = task.summarise(predicted, expected)
    return Accuracy(summary.value, summary.n, summary.ci95, summary.extra.get("f1"))


@dataclass
class PrefillParity:
    """How far the engine's prefills at one budget are from PyTorch's, gathered batch by batch."""

    overlaps: list[NDArray[np.float64]] = field(default_factory=list)  # [b, stages] each
    free_errors: list[float] = field(default_factory=list)
    forced_errors: list[float] = field(default_factory=list)

    def add(self, questions: EncodedQuestions, runs: PrunedRuns, runner: ReferenceRunner) -> None:
        """Compare the prefills of some questions, each from the encodings of its own vision tower."""
        engine, pruning, visual = runs.engine, runs.reference, questions.visual(runner.adapter.device)
        request = PrefillRequest(questions.tokens, questions.engine, engine.keep_counts, engine.agent_index)
        result = engine.session.prefill(request)
        own = runner.prefill(questions.tokens, visual, pruning, saliency=questions.saliency)
        self.overlaps.append(kept_overlap(result.kept, [kept.cpu().numpy() for kept in own.kept]))
        self.free_errors.append(_largest_error(result.logits, own.logits))
        # One token chosen otherwise changes all logits. Replaying the engine's choice shows its arithmetic alone.
        replay = [torch.from_numpy(np.ascontiguousarray(kept)) for kept in result.kept]
        replayed = runner.prefill(questions.tokens, visual, pruning, forced_kept=replay)
        self.forced_errors.append(_largest_error(result.logits, replayed.logits))

    def summarise(self, engine_tokens: Tokens, reference_tokens: Tokens) -> Parity:
        """All that was gathered, with what engine and pruned reference answered to the same or other questions."""
        shares = np.concatenate(self.overlaps)  # [questions, stages]
        return Parity(
            kept_overlap_per_stage=tuple(map(float, shares.mean(axis=0))),
            logit_error_free=_finite(self.free_errors),
            logit_error_forced=_finite(self.forced_errors),
            greedy_agreement=token_agreement(engine_tokens, reference_tokens),
            n=len(shares),
        )


def kept_overlap(one: Sequence[NDArray[np.int64]], other: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """For each question and stage the share of tokens that both keep, ``[b, stages]``; order does not matter.

    Raises:
        ValueError: stages or shapes differ.
    """
    if [kept.shape for kept in one] != [kept.shape for kept in other]:
        raise ValueError(f"kept sets of shapes {[k.shape for k in one]} and {[k.shape for k in other]} are no pair")
    columns = []
    for mine, theirs in zip(one, other, strict=True):
        common = [len(np.intersect1d(*pair)) for pair in zip(mine, theirs, strict=True)]
        columns.append(np.array(common) / mine.shape[1])
    return np.stack(columns, axis=1)


def token_agreement(one: Tokens, other: Tokens) -> float:
    """The share of positions at which both generated the same token; the end counts as a token."""
    ended = [[*row, None] for row in one], [[*row, None] for row in other]
    pairs = [pair for both in zip(*ended, strict=True) for pair in zip_longest(*both, fillvalue="absent")]
    return sum(mine == theirs for mine, theirs in pairs) / len(pairs)


def _largest_error(logits: NDArray[np.float32], wanted: Tensor) -> float:
    return float(np.abs(logits - wanted.cpu().numpy()).max())


def _finite(errors: Sequence[float]) -> float | None:
    """The largest error, None when one is no finite number."""
    return max(errors) if all(map(math.isfinite, errors)) else None
