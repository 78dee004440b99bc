"""Random stage inputs that hold everything a scorer can ask for."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor, nn

from toprl_export.pruning.scorer import Scorer, StageInputs

LEFT_OUT = ("stage", "keep", "visual_real", "row_keep")
"""No tensors, or given only where batch rows differ in their numbers of visual tokens."""
TENSORS = tuple(field.name for field in fields(StageInputs) if field.name not in LEFT_OUT)


def random_inputs(
    seed: int, batch: int = 3, tokens: int = 16, text: int = 7, width: int = 12, all_alive: bool = False
) -> StageInputs:
    """Rows differ in everything: states, which tokens are alive (at least two), which text is the question's."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    alive = torch.rand(batch, tokens, generator=generator) < 0.7
    alive[:, :2] = True
    question_mask = torch.rand(batch, text, generator=generator) < 0.7
    question_mask[:, -1] = True
    # Token 0's dimension is shared, so that cosines are not all near 0.
    visual = normal(batch, tokens, width) + normal(batch, 1, width)
    return StageInputs(
        stage=0,
        visual=visual,
        alive=torch.ones_like(alive) if all_alive else alive,
        origin=torch.arange(tokens).expand(batch, tokens).contiguous(),
        attention=normal(batch, text, tokens).softmax(-1),
        text=normal(batch, text, width),
        question_mask=question_mask,
        saliency=normal(batch, tokens).softmax(-1),
        key_norms=normal(batch, tokens + text).abs() + 1,
        visual_embeddings=normal(batch, tokens, width),
        text_embeddings=normal(batch, text, width),
    )


def only_row(inputs: StageInputs, row: int) -> StageInputs:
    """One row's living tokens, gathered, as if the row had come alone."""
    alive = inputs.alive[row] if inputs.alive is not None else torch.ones_like(inputs.origin[row], dtype=torch.bool)
    assert inputs.attention is not None and inputs.text is not None and inputs.question_mask is not None
    assert inputs.saliency is not None and inputs.key_norms is not None
    assert inputs.visual_embeddings is not None and inputs.text_embeddings is not None
    every = torch.cat([alive, torch.ones_like(inputs.question_mask[row])])
    return StageInputs(
        stage=inputs.stage,
        visual=inputs.visual[row : row + 1, alive],
        alive=None,
        origin=inputs.origin[row : row + 1, alive],
        attention=inputs.attention[row : row + 1, :, alive],
        text=inputs.text[row : row + 1],
        question_mask=inputs.question_mask[row : row + 1],
        saliency=inputs.saliency[row : row + 1, alive],
        key_norms=inputs.key_norms[row : row + 1, every],
        visual_embeddings=inputs.visual_embeddings[row : row + 1],
        text_embeddings=inputs.text_embeddings[row : row + 1],
        keep=inputs.keep,
    )


class ScoreTensors(nn.Module):
    """A scorer as a function of the tensors in `StageInputs`, in their order, for tracing."""

    def __init__(self, scorer: Scorer, keep: int | None = None) -> None:
        super().__init__()
        self.scorer = scorer
        self.keep = keep if scorer.needs.keep else None

    def forward(self, *tensors: Tensor) -> Tensor:
        scores: Tensor = self.scorer(StageInputs(0, **dict(zip(TENSORS, tensors, strict=True)), keep=self.keep))
        return scores


def tensors_of(inputs: StageInputs) -> tuple[Tensor, ...]:
    """What `ScoreTensors` takes."""
    return tuple(getattr(inputs, name) for name in TENSORS)
