"""Ways to answer one batch: Hugging Face's own decoder, our walk unpruned, our walk pruned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ci.gpu.shapes import Subject
from ci.gpu.ways import attention
from toprl_export.models.reference import Pruning, forced_decisions
from toprl_export.models.walk import NO_NEEDS, Decision, TokenTensors, layer_groups, walk_decode, walk_prefill
from toprl_export.pruning.scorer import StageInputs


@dataclass(frozen=True)
class Filled:
    """After the prompt: logits of its last position ``[b, V]``, per layer keys and values ``[b, heads, s_l, hd]``; of
    our walk also what it kept, and per group of layers which cached tokens are valid, ``bool [b, s_g]``."""

    logits: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    masks: tuple[Tensor, ...] = ()
    kept: tuple[Tensor, ...] = ()

    @property
    def cache_bytes(self) -> int:
        """Of keys and values."""
        return sum(x.numel() * x.element_size() for x in (*self.keys, *self.values))


@dataclass(frozen=True)
class Prompt:
    """One batch of prompts of one length, and their images' embeddings ``[b, n, d]``."""

    tokens: TokenTensors
    visual: Tensor

    @property
    def last_position(self) -> Tensor:
        """``int64 [b, 1]``: the position id of the last token."""
        return self.tokens.position_ids[:, -1:]


@dataclass(frozen=True)
class Stock:
    """Hugging Face's decoder with a ``DynamicCache``. It is given no mask: SDPA is told only that attention is causal,
    which leaves PyTorch its fastest kernels."""

    subject: Subject
    way: str

    def prefill(self, prompt: Prompt) -> Filled:
        """Run the prompt."""
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        logits = self._forward(cache, self.subject.embed(prompt.tokens, prompt.visual), prompt.tokens.position_ids)
        keys, values = zip(*((layer.keys, layer.values) for layer in cache.layers), strict=True)
        return Filled(logits, keys, values)

    def start(self, filled: Filled) -> Any:
        """A state to decode from, which decoding may change."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for index, (keys, values) in enumerate(zip(filled.keys, filled.values, strict=True)):
            cache.update(keys, values, index)
        return cache

    def step(self, state: Any, token: Tensor, position: Tensor) -> tuple[Tensor, Any]:
        """One token a row, ``[b, 1]`` both; logits ``[b, V]`` and the state after it."""
        return self._forward(state, self.subject.network.get_input_embeddings()(token), position), state

    def _forward(self, cache: Any, embedded: Tensor, position: Tensor) -> Tensor:
        with attention(self.subject.text_config, self.way):
            output = self.subject.network.model.language_model(
                inputs_embeds=embedded, position_ids=position, past_key_values=cache, use_cache=True
            )
        logits: Tensor = self.subject.network.lm_head(output.last_hidden_state[:, -1])
        return logits.float()


@dataclass(frozen=True)
class Walk:
    """Our walk; ``replay`` keeps the given tokens ``int64 [b, k_t]`` of each stage in the place of the best scored."""

    subject: Subject
    way: str
    pruning: Pruning | None = None
    replay: tuple[Tensor, ...] = ()

    @property
    def stage_layers(self) -> tuple[int, ...]:
        """Before which tokens are dropped."""
        return self.pruning.stage_layers if self.pruning else ()

    def prefill(self, prompt: Prompt) -> Filled:
        """Run the prompt."""
        decoder, needs = self.subject.decoder, self.pruning.scorer.needs if self.pruning else NO_NEEDS
        with attention(self.subject.text_config, self.way):
            done = walk_prefill(decoder, prompt.tokens, prompt.visual, self.stage_layers, self._decide, needs)
        return Filled(done.logits, done.keys, done.values, done.masks, done.kept)

    def start(self, filled: Filled) -> Filled:
        """A state to decode from, which decoding may change."""
        return filled

    def step(self, state: Filled, token: Tensor, position: Tensor) -> tuple[Tensor, Filled]:
        """One token a row, ``[b, 1]`` both; logits ``[b, V]`` and the state after it."""
        decoder, seen = self.subject.decoder, torch.ones_like(token, dtype=torch.bool)
        masks = tuple(torch.cat([mask, seen], dim=1) for mask in state.masks)
        groups = layer_groups(self.stage_layers, len(decoder))
        with attention(self.subject.text_config, self.way):
            logits, keys, values = walk_decode(decoder, token, position, state.keys, state.values, masks, groups)
        return logits, replace(state, keys=keys, values=values, masks=masks)

    def _decide(self, inputs: StageInputs) -> Decision:
        if self.replay:
            return forced_decisions(self.replay)(inputs)
        assert self.pruning is not None, "a walk without stages asks for no decision"
        return self.pruning.decide(inputs)


Contender = Stock | Walk
"""What is timed."""
