"""Questions in a row behind their image, each followed by its gold answer, and the scoring of the answers.

Visual tokens come before the questions and attention is causal, so what a policy that is blind to the question does to
the image does not depend on the questions: one pass over image and kept tokens serves them all. A policy that looks at
the question needs rows of one question each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from toprl_export.errors import UserError
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.decoder import Decoder
from toprl_export.models.walk import TokenTensors
from toprl_export.tasks.task import Question


@dataclass(frozen=True)
class GoldAnswers:
    """Where the gold answers stand among the packed question tokens of a batch of images.

    For each answer token: ``image`` (row), ``place`` (of the token that predicts it, among the q question tokens),
    ``label`` and ``question`` (numbered through the batch), all ``int64 [a]``. ``image_of_question`` is ``int64 [Q]``.
    """

    image: Tensor
    place: Tensor
    label: Tensor
    question: Tensor
    image_of_question: Tensor
    question_tokens: int

    def score(self, decoder: Decoder, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of each gold answer, and whether greedy decoding would give exactly it.

        Args:
            decoder: supplies the head.
            hidden: normed states of the last layer, ``[g·m, s, d]``: m rollouts for each of the g images; the question
                tokens are the last of the sequence.

        Returns:
            ``float32 [Q, m]`` and ``bool [Q, m]``.
        """
        images = int(self.image_of_question.max()) + 1
        asked = hidden[:, -self.question_tokens :]
        asked = asked.reshape(images, -1, *asked.shape[1:])  # [g, m, q, d]
        states = asked[self.image, :, self.place]  # [a, m, d]
        logits = decoder.head(states).float()  # [a, m, V]
        label = self.label[:, None, None].expand(-1, logits.shape[1], 1)
        chosen = logits.log_softmax(-1).gather(-1, label).squeeze(-1)  # [a, m]
        wrong = (logits.argmax(-1) != self.label[:, None]).float()
        empty = torch.zeros(len(self.image_of_question), logits.shape[1], device=logits.device)
        total = empty.index_add(0, self.question, chosen)  # [Q, m]
        return total, empty.index_add(0, self.question, wrong) == 0


@dataclass(frozen=True)
class _Packed:
    """One image's row: prompt up to the image's end, then the questions, ``int64`` each."""

    prefix: list[int]
    tokens: list[int]
    positions: list[int]
    segments: list[int]
    answers: list[tuple[int, int, int]]  # (place, label, question within the row)


def pack_questions(adapter: LVLMAdapter, questions: Sequence[Sequence[Question]]) -> tuple[TokenTensors, GoldAnswers]:
    """Tokenise every image's questions with their answers into one row an image; shorter rows are padded at the right.

    Where every row holds a single question, ``question_end`` says where it ends and the answer begins.

    Args:
        adapter: supplies tokenizer and prompt format.
        questions: per image at least one question.

    Raises:
        UserError: the text up to the image depends on the question, or an answer has no tokens.
    """
    rows = [_pack(adapter, asked) for asked in questions]
    prefix = rows[0].prefix
    if any(row.prefix != prefix for row in rows):
        raise UserError(f"model {adapter.model_id} has the question before the image: such prompts cannot be packed")
    width = max(len(row.tokens) for row in rows)

    def padded(parts: Sequence[Sequence[int]]) -> Tensor:
        array = np.zeros((len(parts), width), dtype=np.int64)
        for row, part in enumerate(parts):
            array[row, : len(part)] = part
        return torch.from_numpy(array).to(adapter.device)

    return (
        _with_prefix(
            adapter,
            prefix,
            padded([row.tokens for row in rows]),
            padded([row.positions for row in rows]),
            padded([row.segments for row in rows]),
            _question_end(adapter, rows),
        ),
        _gold(rows, width, adapter.device),
    )


def _question_end(adapter: LVLMAdapter, rows: Sequence[_Packed]) -> Tensor | None:
    """Where in the sequence each row's only question ends, ``int64 [b]``; None where a row holds several."""
    if any(row.segments[-1] > 1 for row in rows):
        return None
    ends = [len(row.prefix) + row.answers[0][0] for row in rows]  # the token that predicts the answer's first
    return torch.tensor(ends, device=adapter.device)


def repeated(tokens: TokenTensors, times: int) -> TokenTensors:
    """Every row ``times`` times in succession."""
    fields = {name: getattr(tokens, name) for name in tokens.__dataclass_fields__}
    return replace(tokens, **{name: x.repeat_interleave(times, dim=0) for name, x in fields.items() if x is not None})


def _pack(adapter: LVLMAdapter, questions: Sequence[Question]) -> _Packed:
    packed = _Packed([], [], [], [], [])
    for number, question in enumerate(questions):
        batch = adapter.prompt_format.tokenize(adapter.tokenizer, [question.text], adapter.visual_tokens)
        start = int(batch.visual_index[0, -1]) + 1
        prompt = batch.input_ids[0, start:].tolist()
        answer = adapter.tokenizer.encode(question.answer, add_special_tokens=False).ids
        if not answer:
            raise UserError(f"the answer {question.answer!r} to {question.text!r} has no tokens: correct the task")
        labels = [*answer, adapter.end_tokens[0]]
        first = len(packed.tokens) + len(prompt) - 1
        packed.prefix[:] = batch.input_ids[0, :start].tolist()
        packed.answers.extend((first + offset, label, number) for offset, label in enumerate(labels))
        packed.positions.extend(range(start, start + len(prompt) + len(answer)))
        packed.segments.extend([number + 1] * (len(prompt) + len(answer)))
        packed.tokens.extend([*prompt, *answer])
    return packed


def _with_prefix(
    adapter: LVLMAdapter,
    prefix: Sequence[int],
    tokens: Tensor,
    positions: Tensor,
    segments: Tensor,
    question_end: Tensor | None,
) -> TokenTensors:
    rows, device = len(tokens), adapter.device
    lead = torch.tensor(prefix, device=device).expand(rows, -1)
    counted = torch.arange(len(prefix), device=device).expand(rows, -1)
    length = len(prefix) + tokens.shape[1]
    first_visual = len(prefix) - adapter.visual_tokens
    places = torch.arange(length, device=device)
    visual = (places >= first_visual) & (places < len(prefix))
    return TokenTensors(
        input_ids=torch.cat([lead, tokens], dim=1),
        attention_mask=torch.cat([torch.ones_like(lead), (segments > 0).long()], dim=1),
        position_ids=torch.cat([counted, positions], dim=1),
        visual_index=places[visual].expand(rows, -1),
        text_index=places[~visual].expand(rows, -1),
        segments=torch.cat([torch.zeros_like(lead), segments], dim=1),
        question_end=question_end,
    )


def _gold(rows: Sequence[_Packed], width: int, device: torch.device) -> GoldAnswers:
    found: list[tuple[int, int, int, int]] = []
    image_of_question: list[int] = []
    for image, row in enumerate(rows):
        first = len(image_of_question)
        found += [(image, place, label, first + question) for place, label, question in row.answers]
        image_of_question += [image] * (row.segments[-1])
    images, places, labels, questions = torch.tensor(found, device=device).unbind(1)
    return GoldAnswers(images, places, labels, questions, torch.tensor(image_of_question, device=device), width)
