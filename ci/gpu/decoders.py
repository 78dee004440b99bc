"""What decodes one batch: Hugging Face's own decoder or our walk, pruned or not, by some attention implementation.

Implementations have names that transformers knows. Those that take no mask are for prompts that begin with the image,
where what the walk's mask says is plain causality: tokens are in their order, kept ones too, and none is padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ci.gpu.context import MISSING, NotRun
from ci.gpu.models import BenchModel
from toprl_export.models.reference import Pruning, forced_decisions
from toprl_export.models.walk import NO_NEEDS, Decision, TokenTensors, layer_groups, walk_decode, walk_prefill
from toprl_export.pruning.scorer import StageInputs

MASKED = "sdpa"
"""Hugging Face's own use of SDPA: the walk hands it a mask, its own forward none."""
CAUSAL = "toprl_ci_causal"
KERNEL = "toprl_ci_kernel"
KERNEL_MASKED = "toprl_ci_kernel_masked"
FLASH = "toprl_ci_flash_attn"
NOT_CAUSAL = "toprl_ci_not_causal"
NAMES = {
    MASKED: "SDPA, mask",
    CAUSAL: "SDPA, causal",
    KERNEL: "our kernel",
    KERNEL_MASKED: "our kernel, mask",
    FLASH: "flash-attn",
}
HALF_ONLY = (KERNEL, KERNEL_MASKED, FLASH)
TAKE_MASKS = (MASKED, KERNEL_MASKED)

Heads = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
"""Query, key, value ``[b, heads, s, head_dim]``, the walk's mask ``bool [b, 1, q, k]`` and scale to
``[b, heads, q, head_dim]``."""


def register_implementations(dtype: torch.dtype) -> dict[str, str]:
    """Make every implementation known to transformers.

    Args:
        dtype: of the model that is to be run.

    Returns:
        why each of those that cannot be used here is not there, by its name.
    """
    makers: dict[str, Callable[[], Heads]] = {
        CAUSAL: lambda: partial(_sdpa, causal=True),
        NOT_CAUSAL: lambda: partial(_sdpa, causal=False),
        KERNEL: partial(_our_kernel, masked=False),
        KERNEL_MASKED: partial(_our_kernel, masked=True),
        FLASH: _flash_attn,
    }
    missing = {}
    for name, make in makers.items():
        if dtype == torch.float32 and name in HALF_ONLY:
            missing[name] = "it takes fp16 and bf16, the model is fp32"
            continue
        try:
            _register(name, make())
        except MISSING as error:
            missing[name] = str(error)
    return missing


@contextmanager
def attention_implementation(config: Any, implementation: str) -> Iterator[None]:
    """Within the block the layers of ``config`` run by ``implementation``."""
    former = config._attn_implementation
    config._attn_implementation = implementation
    try:
        yield
    finally:
        config._attn_implementation = former


def load_kernel() -> Callable[..., Tensor]:
    """`toprl_flash_attention.kernel.flash_attention`.

    Raises:
        NotRun: there is no Triton.
    """
    if find_spec("triton") is None:
        raise NotRun("triton is not installed")
    function: Callable[..., Tensor] = import_module("toprl_flash_attention.kernel").flash_attention
    return function


def _register(name: str, heads: Heads) -> None:
    from transformers import AttentionInterface

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        del module
        return heads(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None

    AttentionInterface.register(name, attend)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, *, causal: bool) -> Tensor:
    del mask
    grouped = query.shape[1] != key.shape[1]
    wanted = causal and query.shape[2] > 1
    return scaled_dot_product_attention(query, key, value, is_causal=wanted, scale=scale, enable_gqa=grouped)


def _our_kernel(masked: bool) -> Heads:
    function = load_kernel()

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        return function(query, key, value, mask if masked else None, scale=scale, causal=not masked)

    return attend


def _flash_attn() -> Heads:
    function = import_module("flash_attn").flash_attn_func

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        del mask
        turned = (x.transpose(1, 2) for x in (query, key, value))
        answer: Tensor = function(*turned, softmax_scale=scale, causal=True)
        return answer.transpose(1, 2)

    return attend


@dataclass(frozen=True)
class Prefilled:
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
class HuggingFaceDecoder:
    """Hugging Face's decoder with a ``DynamicCache``, and no mask: plain causality leaves SDPA its fastest kernels."""

    model: BenchModel
    implementation: str

    def prefill(self, prompt: Prompt) -> Prefilled:
        """Run the prompt."""
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        logits = self._forward(cache, self.model.embed(prompt.tokens, prompt.visual), prompt.tokens.position_ids)
        keys, values = zip(*((layer.keys, layer.values) for layer in cache.layers), strict=True)
        return Prefilled(logits, keys, values)

    def start(self, filled: Prefilled) -> Any:
        """A state to decode from, which decoding may change."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for index, (keys, values) in enumerate(zip(filled.keys, filled.values, strict=True)):
            cache.update(keys, values, index)
        return cache

    def step(self, state: Any, token: Tensor, position: Tensor) -> tuple[Tensor, Any]:
        """One token a row, ``[b, 1]`` both; logits ``[b, V]`` and the state after it."""
        return self._forward(state, self.model.network.get_input_embeddings()(token), position), state

    def _forward(self, cache: Any, embedded: Tensor, position: Tensor) -> Tensor:
        with attention_implementation(self.model.text_config, self.implementation):
            output = self.model.network.model.language_model(
                inputs_embeds=embedded, position_ids=position, past_key_values=cache, use_cache=True
            )
        logits: Tensor = self.model.network.lm_head(output.last_hidden_state[:, -1])
        return logits.float()


@dataclass(frozen=True)
class WalkDecoder:
    """Our walk; ``replay`` keeps the given tokens ``int64 [b, k_t]`` at each stage instead of the best scored."""

    model: BenchModel
    implementation: str
    pruning: Pruning | None = None
    replay: tuple[Tensor, ...] = ()

    @property
    def stage_layers(self) -> tuple[int, ...]:
        """Before which tokens are dropped."""
        return self.pruning.stage_layers if self.pruning else ()

    def prefill(self, prompt: Prompt) -> Prefilled:
        """Run the prompt."""
        decoder, needs = self.model.decoder, self.pruning.scorer.needs if self.pruning else NO_NEEDS
        with attention_implementation(self.model.text_config, self.implementation):
            done = walk_prefill(decoder, prompt.tokens, prompt.visual, self.stage_layers, self._decide, needs)
        return Prefilled(done.logits, done.keys, done.values, done.masks, done.kept)

    def start(self, filled: Prefilled) -> Prefilled:
        """A state to decode from, which decoding may change."""
        return filled

    def step(self, state: Prefilled, token: Tensor, position: Tensor) -> tuple[Tensor, Prefilled]:
        """One token a row, ``[b, 1]`` both; logits ``[b, V]`` and the state after it."""
        decoder, seen = self.model.decoder, torch.ones_like(token, dtype=torch.bool)
        masks = tuple(torch.cat([mask, seen], dim=1) for mask in state.masks)
        groups = layer_groups(self.stage_layers, len(decoder))
        with attention_implementation(self.model.text_config, self.implementation):
            logits, keys, values = walk_decode(decoder, token, position, state.keys, state.values, masks, groups)
        return logits, replace(state, keys=keys, values=values, masks=masks)

    def _decide(self, inputs: StageInputs) -> Decision:
        if self.replay:
            return forced_decisions(self.replay)(inputs)
        assert self.pruning is not None, "a walk without stages makes no decision"
        return self.pruning.decide(inputs)


BenchDecoder = HuggingFaceDecoder | WalkDecoder
"""What is timed."""
