"""Greedy answers of the PyTorch reference to many questions, unpruned or under any pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from torch import Tensor

from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.runtime.answer_length import DEFAULT_NEW_TOKENS, prompt_room
from toprl_export.tasks.task import Sample

BATCH = 20
"""Questions in a batch. The padding of a batch moves logits by rounding errors and so, rarely, an answer: kept results
depend on it."""

PruningOf = Callable[[Sequence[Sample]], Pruning | None]
"""What prunes a batch of samples; None leaves it unpruned."""


def answer_samples(
    runner: ReferenceRunner,
    samples: Sequence[Sample],
    pruning_of: PruningOf,
    *,
    batch: int = BATCH,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    progress: Callable[[int], object] | None = None,
) -> list[str]:
    """Answer every question greedily.

    Args:
        runner: the model.
        samples: the questions.
        pruning_of: called once for every batch, in order.
        batch: questions in a batch; the last one may be smaller.
        max_new_tokens: the longest answer.
        progress: called after each batch with its number of questions.

    Returns:
        the answers as texts, in the order of ``samples``.

    Raises:
        UserError: a question is too long for the model.
    """
    answers: list[str] = []
    for chosen in sample_batches(samples, batch):
        answers += EncodedBatch(runner, chosen, max_new_tokens).answer(pruning_of(chosen))
        if progress:
            progress(len(chosen))
    return answers


def sample_batches(samples: Sequence[Sample], size: int = BATCH) -> Iterator[Sequence[Sample]]:
    """The samples in batches of ``size``; the last may be smaller."""
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


class EncodedBatch:
    """Samples whose images are encoded once, to be answered under several prunings.

    Attributes:
        samples: the questions with their images.
        tokens: the tokenised prompts.
        visual: projected visual embeddings ``[b, n, d]``.

    Raises:
        UserError: a question leaves no room for ``max_new_tokens``.
    """

    def __init__(
        self, runner: ReferenceRunner, samples: Sequence[Sample], max_new_tokens: int = DEFAULT_NEW_TOKENS
    ) -> None:
        adapter = runner.adapter
        room = prompt_room(adapter.max_length, adapter.visual_tokens, max_new_tokens)
        questions = [sample.question for sample in samples]
        self._runner = runner
        self._max_new_tokens = max_new_tokens
        self.samples = tuple(samples)
        self.tokens = adapter.frontend.tokens(questions, room)
        self.visual = runner.encode_image(
            adapter.fixed_frontend.pixels([sample.image for sample in samples])
        )  # [b, n, d]

    @cached_property
    def saliency(self) -> Tensor:
        """The vision tower's attention on each patch, ``float32 [b, n]``; computed when first needed."""
        pixels = self._runner.adapter.fixed_frontend.pixels([sample.image for sample in self.samples])
        return self._runner.saliency(pixels)

    def saliency_for(self, pruning: Pruning | None) -> Tensor | None:
        """What :meth:`ReferenceRunner.prefill` takes as ``saliency``: None where the scorer does not need it."""
        return self.saliency if pruning is not None and pruning.scorer.needs.saliency else None

    def answer(self, pruning: Pruning | None) -> list[str]:
        """Greedy answers as texts, one for each sample."""
        generated = self._runner.generate(
            self.tokens, self.visual, self._max_new_tokens, pruning, self.saliency_for(pruning)
        )
        return [self._runner.adapter.tokenizer.decode(row) for row in generated.tokens]
