"""The PyTorch reference: unpruned, or pruned by gathering tokens with the same `select` as everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toprl_export.errors import UserError
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.walk import (
    NO_NEEDS,
    Decide,
    Decision,
    Prefill,
    TokenTensors,
    layer_groups,
    walk_decode,
    walk_prefill,
)
from toprl_export.pruning.plan import PruningPlan
from toprl_export.pruning.scorer import Scorer, StageInputs
from toprl_export.pruning.select import select, select_rows
from toprl_export.runtime.layout import Pictures, TokenBatch


@dataclass(frozen=True)
class Pruning:
    """What a pruned run needs: where stages stand, how many tokens each keeps, and who scores.

    ``keep_counts`` are one number a stage, or of each batch row its own, ``int64 [b, T]``, where rows differ in n.
    """

    stage_layers: tuple[int, ...]
    keep_counts: tuple[int, ...] | Tensor
    scorer: Scorer

    @classmethod
    def from_plan(cls, plan: PruningPlan, budget_kept: int, scorer: Scorer) -> Pruning:
        """The plan's schedule for ``budget_kept`` with one scorer for all stages.

        Raises:
            UserError: the plan has no such budget or a stage outside the decoder.
        """
        return cls(plan.stage_layers, plan.schedule(budget_kept).keep_counts, scorer)

    def decide(self, inputs: StageInputs) -> Decision:
        """Score and take the best: ``int64 [b, k]``."""
        if isinstance(self.keep_counts, Tensor):
            counts, alive = self.keep_counts[:, inputs.stage], inputs.alive
            assert alive is not None
            most = int(counts.max())
            return Decision(*select_rows(self.scorer(replace(inputs, keep=most, row_keep=counts)), counts, most, alive))
        keep = self.keep_counts[inputs.stage]
        return Decision(select(self.scorer(replace(inputs, keep=keep)), keep))


def forced_decisions(kept: Sequence[Tensor]) -> Decide:
    """A ``decide`` that replays the visual origins (``int64 [b, k_t]`` per stage) that another run kept."""

    def decide(inputs: StageInputs) -> Decision:
        wanted = kept[inputs.stage].to(inputs.origin.device)
        # Both ascend, so a search finds each origin's living slot; one that was dropped finds another's.
        living_slot = torch.searchsorted(inputs.origin.contiguous(), wanted.contiguous())
        living_slot = living_slot.clamp(max=inputs.origin.shape[1] - 1)
        if not torch.equal(inputs.origin.gather(1, living_slot), wanted):
            raise UserError(
                f"stage {inputs.stage + 1} is to keep tokens that an earlier stage dropped: replay all stages"
            )
        return Decision(living_slot)

    return decide


def to_tensors(tokens: TokenBatch, device: torch.device) -> TokenTensors:
    """The runtime's NumPy batch as tensors on ``device``."""
    arrays = {name: array for name, array in vars(tokens).items() if array is not None}
    return TokenTensors(**{name: torch.from_numpy(array).to(device) for name, array in arrays.items()})


@dataclass(frozen=True)
class ReferenceAnswers:
    """New token ids of each batch row (the end token left out) and what the prefill left behind."""

    tokens: list[list[int]]
    prefill: Prefill


class ReferenceRunner:
    """Runs the frozen model in PyTorch, unpruned or pruned."""

    def __init__(self, adapter: LVLMAdapter) -> None:
        self.adapter = adapter

    @torch.inference_mode()
    def encode(self, pictures: Pictures) -> Tensor:
        """Pictures to visual embeddings, see `LVLMAdapter.encode`."""
        device = self.adapter.device
        return self.adapter.encode({name: torch.from_numpy(it).to(device) for name, it in pictures.arrays.items()})

    @torch.inference_mode()
    def encode_image(self, pixel_values: NDArray[np.float32]) -> Tensor:
        """``float32 [b, 3, h, w]`` to visual embeddings ``[b, n, d]``."""
        return self.adapter.encode_image(torch.from_numpy(pixel_values).to(self.adapter.device))

    @torch.inference_mode()
    def saliency(self, pixel_values: NDArray[np.float32]) -> Tensor:
        """``float32 [b, 3, h, w]`` to the vision tower's attention on each visual token, ``float32 [b, n]``."""
        return self.adapter.vision_saliency(torch.from_numpy(pixel_values).to(self.adapter.device))

    @torch.inference_mode()
    def prefill(
        self,
        tokens: TokenBatch,
        visual: Tensor,
        pruning: Pruning | None = None,
        forced_kept: Sequence[Tensor] | None = None,
        saliency: Tensor | None = None,
    ) -> Prefill:
        """Prefill unpruned (no ``pruning``), pruned, or pruned to ``forced_kept`` instead of by score.

        Args:
            tokens: the tokenised prompts.
            visual: embeddings ``[b, n, d]``.
            pruning: stages, counts and scorer.
            forced_kept: per stage the visual origins to keep, ``int64 [b, k_t]``.
            saliency: the vision tower's attention on each patch, ``float32 [b, n]``, where the scorer needs it.
        """
        decide = forced_decisions(forced_kept) if forced_kept is not None else pruning.decide if pruning else None
        return walk_prefill(
            self.adapter.decoder,
            to_tensors(tokens, self.adapter.device),
            visual,
            pruning.stage_layers if pruning else (),
            decide or _never,
            needs=pruning.scorer.needs if pruning else NO_NEEDS,
            saliency=saliency,
        )

    @torch.inference_mode()
    def generate(
        self,
        tokens: TokenBatch,
        visual: Tensor,
        max_new_tokens: int,
        pruning: Pruning | None = None,
        saliency: Tensor | None = None,
    ) -> ReferenceAnswers:
        """Greedy answers; batch rows that have ended wait for the others."""
        prefill = self.prefill(tokens, visual, pruning, saliency=saliency)
        decoder, device = self.adapter.decoder, self.adapter.device
        groups = layer_groups(pruning.stage_layers if pruning else (), len(decoder))
        keys, values, masks, logits = prefill.keys, prefill.values, prefill.masks, prefill.logits
        position = torch.from_numpy(tokens.next_position[:, None]).to(device)  # [b, 1], counted before pruning
        end = torch.tensor(self.adapter.end_tokens, device=device)
        chosen = logits.argmax(dim=-1, keepdim=True)  # [b, 1]
        output, ended = [chosen], torch.isin(chosen, end)
        while len(output) < max_new_tokens and not ended.all():
            masks = tuple(torch.cat([mask, torch.ones_like(chosen, dtype=torch.bool)], dim=1) for mask in masks)
            logits, keys, values = walk_decode(decoder, chosen, position, keys, values, masks, groups)
            chosen = logits.argmax(dim=-1, keepdim=True)
            output.append(chosen)
            ended |= torch.isin(chosen, end)
            position = position + 1
        answers = torch.cat(output, dim=1).tolist()
        return ReferenceAnswers([until_end(answer, self.adapter.end_tokens) for answer in answers], prefill)


def _never(inputs: StageInputs) -> Decision:
    raise AssertionError(f"no stage was planned, yet stage {inputs.stage} was reached")


def until_end(answer: list[int], end: tuple[int, ...]) -> list[int]:
    """A row of token ids up to its first end token, which is left out."""
    for length, token in enumerate(answer):
        if token in end:
            return answer[:length]
    return answer
