"""The modules that are traced: one per graph of a bundle. All of them run the core's own walk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.decoder import Decoder
from toprl_export.models.walk import Decision, Prefill, TokenTensors, layer_groups, walk_decode, walk_prefill
from toprl_export.pruning.scorer import Scorer, StageInputs
from toprl_export.pruning.select import select, select_rows


class VisionGraph(nn.Module):
    """What the tower takes → visual embeddings (`LVLMAdapter.encode`) and, where it is wanted, saliency ``[b, n]``.

    All in float32, whatever the tower computes in.
    """

    def __init__(self, adapter: LVLMAdapter, saliency: bool = False) -> None:
        super().__init__()
        self.model: nn.Module = adapter.model
        self._adapter = adapter
        self._names = tuple(adapter.frontend.vision_axes)
        self._saliency = saliency

    def forward(self, *arrays: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """``arrays``: those of `Pictures.arrays`, in the order of `Frontend.vision_axes`."""
        vision = dict(zip(self._names, arrays, strict=True))
        visual = self._adapter.encode(vision).float()
        # Both run the tower; the equal halves are merged when the graph is optimised.
        return (visual, self._adapter.vision_saliency(vision["pixel_values"])) if self._saliency else visual


class PrefillGraph(nn.Module):
    """The whole prompt, pruned before each stage layer by the bundle's scorer.

    Args:
        decoder: the frozen decoder.
        scorer: a baseline's, or all agents of the bundle stacked.
        stage_layers: the layers before which the stages stand.
        fixed_counts: keep counts to write into the graph, one per stage; None reads them from the input.
    """

    def __init__(
        self,
        decoder: Decoder,
        scorer: Scorer,
        stage_layers: tuple[int, ...],
        fixed_counts: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.scorer = scorer
        self.stage_layers = stage_layers
        self.fixed_counts = fixed_counts

    def forward(
        self,
        input_ids: Tensor,
        visual: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        visual_index: Tensor,
        text_index: Tensor,
        visual_rows: Tensor | None = None,
        saliency: Tensor | None = None,
        agent_index: Tensor | None = None,
        keep_counts: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """What the walk is given (`TokenTensors`, `walk_prefill`), and what steers it.

        Args:
            input_ids: see `TokenTensors`, like all that is not explained here.
            visual: projected visual embeddings, float32 ``[b, n, d]``, or ``[r, d]`` with ``visual_rows``.
            saliency: float32 ``[b, n]``, where the scorer needs it.
            agent_index: int64 scalar, where the scorer is a stack of agents.
            keep_counts: int64 ``[T]``, or ``[b, T]`` with ``visual_rows``, where none are fixed.
        """
        tokens = TokenTensors(input_ids, attention_mask, position_ids, visual_index, text_index, visual_rows)
        picked = () if agent_index is None else (agent_index,)

        def decide(inputs: StageInputs) -> Decision:
            if keep_counts is not None and visual_rows is not None:
                return self._decide_rows(inputs, keep_counts[:, inputs.stage], picked)
            count = self._count(inputs, keep_counts)
            if needs.keep:
                inputs = replace(inputs, keep=cast(int, count))  # while traced, a number without a value
            return Decision(select(self.scorer(inputs, *picked), count))

        needs = self.scorer.needs
        return flatten_prefill(
            walk_prefill(self.decoder, tokens, visual, self.stage_layers, decide, needs=needs, saliency=saliency)
        )

    def _decide_rows(self, inputs: StageInputs, counts: Tensor, picked: tuple[Tensor, ...]) -> Decision:
        """Of each batch row its own number, ``counts`` int64 ``[b]``."""
        most = counts.max().item()
        torch._check(most > 1)  # type: ignore[no-untyped-call]  # see `_count`
        if self.scorer.needs.keep:
            inputs = replace(inputs, keep=cast(int, most), row_keep=counts)
        alive = inputs.alive
        assert alive is not None
        scores = self.scorer(inputs, *picked)
        return Decision(*select_rows(scores, counts, cast(torch.SymInt, most), alive))

    def _count(self, inputs: StageInputs, keep_counts: Tensor | None) -> int | torch.SymInt:
        if self.fixed_counts is not None:
            return self.fixed_counts[inputs.stage]
        assert keep_counts is not None
        count = keep_counts[inputs.stage].item()
        # The tracer must know that one size serves all counts; 0 and 1 would be sizes of their own.
        torch._check(count > 1)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return count  # type: ignore[return-value]  # a SymInt while tracing


class UnprunedPrefillGraph(nn.Module):
    """The whole prompt without any stage: what the pruned engine is measured against."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        input_ids: Tensor,
        visual: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        visual_index: Tensor,
        text_index: Tensor,
        visual_rows: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        tokens = TokenTensors(input_ids, attention_mask, position_ids, visual_index, text_index, visual_rows)
        return flatten_prefill(walk_prefill(self.decoder, tokens, visual, (), _never))


class DecodeGraph(nn.Module):
    """One token over caches of different lengths."""

    def __init__(self, decoder: Decoder, stage_layers: tuple[int, ...]) -> None:
        super().__init__()
        self.decoder = decoder
        self.group_of_layer = layer_groups(stage_layers, len(decoder))

    def forward(
        self, token: Tensor, position: Tensor, caches: Sequence[Tensor], masks: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """``token`` and ``position`` int64 ``[b, 1]``; ``caches`` key and value of each layer in turn; ``masks`` per
        group, the new token included."""
        logits, keys, values = walk_decode(
            self.decoder, token, position, tuple(caches[::2]), tuple(caches[1::2]), tuple(masks), self.group_of_layer
        )
        return (logits, *interleave(keys, values))


def flatten_prefill(prefill: Prefill) -> tuple[Tensor, ...]:
    """In the order of the graph's outputs: logits, key and value of each layer, kept indices, masks."""
    return (prefill.logits, *interleave(prefill.keys, prefill.values), *prefill.kept, *prefill.masks)


def interleave(keys: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    """key_0, value_0, key_1, value_1, …"""
    return [tensor for pair in zip(keys, values, strict=True) for tensor in pair]


def _never(inputs: StageInputs) -> Decision:
    raise AssertionError(f"stage {inputs.stage} in a graph without stages")
