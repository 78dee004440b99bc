"""Accuracy: the same held-out questions answered by the stock model, by both pruned forms and with random pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.tasks.metrics import difference_interval, retention_interval
from toprl_export.tasks.task import Task
from toprl_export.validate.answers import (
    MAX_NEW_TOKENS,
    Contender,
    QuestionBatch,
    Tokens,
    decode_texts,
    greedy_tokens,
    needed_saliency,
)
from toprl_export.validate.report import Accuracy, AccuracyComparison, Interval


@dataclass(frozen=True)
class BudgetContenders:
    """The three pruned answerers of one budget; all budgets share engine and scorer."""

    engine: Contender
    pruned_reference: Pruning
    random: Pruning


@dataclass
class Answers:
    """Token ids of every question, in order: of the unpruned reference, and per budget of the pruned answerers."""

    expected: list[str]
    reference: Tokens
    engine: dict[int, Tokens]
    pruned_reference: dict[int, Tokens]
    random: dict[int, Tokens]


@dataclass(frozen=True)
class Retention:
    """One budget's accuracies and what follows from them."""

    accuracy: AccuracyComparison
    retention: float | None
    retention_ci95: Interval | None
    engine_minus_random_ci95: Interval


def collect_answers(
    stock: Contender,
    tokenizer: Tokenizer,
    runner: ReferenceRunner,
    budgets: Mapping[int, BudgetContenders],
    batches: Iterable[QuestionBatch],
    progress: Callable[[int], object],
) -> Answers:
    """Answer every question greedily in every way; images are encoded once for PyTorch and once for the engine."""
    answers = Answers([], [], {k: [] for k in budgets}, {k: [] for k in budgets}, {k: [] for k in budgets})
    end = runner.adapter.end_tokens
    for batch in batches:
        answers.expected += batch.answers
        images = stock.session.encode_image(batch.pixels)
        answers.reference += greedy_tokens(stock, batch, images, tokenizer, end)
        visual = torch.from_numpy(images.visual).to(runner.adapter.device)
        first = next(iter(budgets.values()))
        saliency = needed_saliency(runner, batch.pixels, first.pruned_reference.scorer)
        engine_images = first.engine.session.encode_image(batch.pixels)
        for budget, ways in budgets.items():
            answers.engine[budget] += greedy_tokens(ways.engine, batch, engine_images, tokenizer, end)
            for tokens, pruning in ((answers.pruned_reference, ways.pruned_reference), (answers.random, ways.random)):
                tokens[budget] += runner.generate(batch.tokens, visual, MAX_NEW_TOKENS, pruning, saliency).tokens
        progress(len(batch.answers))
    return answers


def judge_answers(task: Task, tokenizer: Tokenizer, answers: Answers, budget: int, seed: int) -> Retention:
    """Score one budget's answers; ``seed`` is that of the bootstrap."""
    texts = {
        name: decode_texts(tokenizer, tokens)
        for name, tokens in (
            ("reference", answers.reference),
            ("pruned_reference", answers.pruned_reference[budget]),
            ("engine", answers.engine[budget]),
            ("random", answers.random[budget]),
        )
    }
    right = {name: _right(task, predicted, answers.expected) for name, predicted in texts.items()}
    kept = retention_interval(right["engine"], right["reference"], seed) if any(right["reference"]) else None
    return Retention(
        accuracy=AccuracyComparison(**{name: _accuracy(task, one, answers.expected) for name, one in texts.items()}),
        retention=kept.value if kept else None,
        retention_ci95=kept.ci95 if kept else None,
        engine_minus_random_ci95=difference_interval(right["engine"], right["random"], seed).ci95,
    )


def _right(task: Task, predicted: Sequence[str], expected: Sequence[str]) -> list[float]:
    return [task.score(one, answer) for one, answer in zip(predicted, expected, strict=True)]


def _accuracy(task: Task, predicted: Sequence[str], expected: Sequence[str]) -> Accuracy:
    summary = task.summarise(predicted, expected)
    return Accuracy(summary.value, summary.n, summary.ci95, summary.extra.get("f1"))
