"""Ways to answer one batch: Hugging Face's own decoder, our walk unpruned, our walk pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ci.gpu.shapes import Subject
from ci.gpu.ways import attention
from toprl_export.models.reference import Pruning
from toprl_export.models.walk import (
    NOTHING,
    Decision,
    Prefill,
    TokenTensors,
    layer_groups,
    walk_decode,
    walk_prefill,
)
from toprl_export.pruning.scorer import StageInputs


@dataclass(frozen=True)
class Filled:
    """After the prompt: logits of its last position ``[b, V]``, per layer keys and values ``[b, heads, s_l, hd]``, and
    what else the contender's decoding needs."""

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


class Contender(Protocol):
    """What is timed."""

    def prefill(self, prompt: Prompt) -> Filled:
        """Run the prompt."""
        ...

    def start(self, filled: Filled) -> Any:
        """A state to decode from, which decoding may change."""
        ...

    def step(self, state: Any, token: Tensor, position: Tensor) -> tuple[Tensor, Any]:
        """One token a row, ``[b, 1]`` both; logits ``[b, V]`` and the state after it."""
        ...


@dataclass(frozen=True)
class Stock:
    """Hugging Face's decoder with a ``DynamicCache``, no mask."""

    subject: Subject
    way: str

    def prefill(self, prompt: Prompt) -> Filled:
        """See `Contender`."""
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        logits = self._forward(cache, self.subject.embed(prompt.tokens, prompt.visual), prompt.tokens.position_ids)
        keys, values = zip(*((layer.keys, layer.values) for layer in cache.layers), strict=True)
        return Filled(logits, keys, values)

    def start(self, filled: Filled) -> Any:
        """See `Contender`."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for index, (keys, values) in enumerate(zip(filled.keys, filled.values, strict=True)):
            cache.update(keys, values, index)
        return cache

    def step(self, state: Any, token: Tensor, position: Tensor) -> tuple[Tensor, Any]:
        """See `Contender`."""
        return self._forward(state, self.subject.network.get_input_embeddings()(token), position), state

    def _forward(self, cache: Any, embedded: Tensor, position: Tensor) -> Tensor:
        with attention(self.subject.text_config, self.way):
            output = self.subject.network.model.language_model(
                inputs_embeds=embedded, position_ids=position, past_key_values=cache, use_cache=True
            )
        logits: Tensor = self.subject.network.lm_head(output.last_hidden_state[:, -1])
        return logits.float()


@dataclass(frozen=True)
class _State:
    """Caches, and per group the mask of cached tokens, ``bool [b, s_g]``."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]


@dataclass(frozen=True)
class Walk:
    """Our walk; ``replay`` keeps the given tokens ``int64 [b, k_t]`` of each stage in the place of the best scored."""

    subject: Subject
    way: str
    pruning: Pruning | None = None
    replay: tuple[Tensor, ...] = ()

    def prefill(self, prompt: Prompt) -> Filled:
        """See `Contender`."""
        with attention(self.subject.text_config, self.way):
            done: Prefill = walk_prefill(
                self.subject.decoder,
                prompt.tokens,
                prompt.visual,
                self.pruning.stage_layers if self.pruning else (),
                self._decide,
                needs=self.pruning.scorer.needs if self.pruning else NOTHING,
            )
        return Filled(done.logits, done.keys, done.values, done.masks, done.kept)

    def start(self, filled: Filled) -> _State:
        """See `Contender`."""
        return _State(filled.keys, filled.values, filled.masks)

    def step(self, state: _State, token: Tensor, position: Tensor) -> tuple[Tensor, _State]:
        """See `Contender`."""
        seen = torch.ones_like(token, dtype=torch.bool)
        masks = tuple(torch.cat([mask, seen], dim=1) for mask in state.masks)
        groups = layer_groups(self.pruning.stage_layers if self.pruning else (), len(self.subject.decoder))
        with attention(self.subject.text_config, self.way):
            logits, keys, values = walk_decode(
                self.subject.decoder, token, position, state.keys, state.values, masks, groups
            )
        return logits, _State(keys, values, masks)

    def _decide(self, inputs: StageInputs) -> Decision:
        assert self.pruning is not None, "a walk without stages asks for no decision"
        if not self.replay:
            return self.pruning.decide(inputs)
        wanted = self.replay[inputs.stage]
        return Decision(torch.searchsorted(inputs.positions.contiguous(), wanted))
