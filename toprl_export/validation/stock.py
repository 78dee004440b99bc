"""The reference model as Hugging Face runs it, behind the interface that engines have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toprl_export.models.adapter import LVLMAdapter
from toprl_export.runtime.session import EncodedImages, PrefillRequest, PrefillResult


@dataclass
class _Cache:
    """What the stock model carries from token to token: ``mask`` is ``int64 [b, s]``, ``position`` ``int64 [b, 1]``."""

    past: Any
    mask: torch.Tensor
    position: torch.Tensor


class StockSession:
    """Runs the model's own code, never the project's walk: ``get_image_features``, then the language model's forward
    with a ``DynamicCache``. It prunes nothing, whatever the request's keep counts."""

    def __init__(self, adapter: LVLMAdapter) -> None:
        self._model = adapter.model
        self._device = adapter.device
        self._dtype = adapter.dtype

    @torch.inference_mode()
    def encode(self, pictures: Mapping[str, NDArray[Any]]) -> EncodedImages:
        """``float32 [b, 3, h, w]`` to projected visual embeddings."""
        found = self._model.get_image_features(pixel_values=self._tensor(pictures["pixel_values"]).to(self._dtype))
        # transformers before 5.1 returned the features themselves, one tensor an image.
        features = torch.stack(list(getattr(found, "pooler_output", found)))  # [b, n, d]
        return EncodedImages(features.float().cpu().numpy())

    @torch.inference_mode()
    def prefill(self, request: PrefillRequest) -> PrefillResult:
        """Run the whole prompt; ``kept`` is empty."""
        from transformers import DynamicCache

        tokens = request.tokens
        embeds = self._model.get_input_embeddings()(self._tensor(tokens.input_ids))  # [b, s, d]
        place = self._tensor(tokens.visual_index)[..., None].expand(-1, -1, embeds.shape[-1])
        embeds = embeds.scatter(1, place, self._tensor(request.images.visual).to(embeds.dtype))
        position = self._tensor(tokens.position_ids)
        cache = _Cache(DynamicCache(), self._tensor(tokens.attention_mask), position[:, -1:])
        return PrefillResult(self._forward(cache, embeds, position), cache, ())

    @torch.inference_mode()
    def decode(self, cache: _Cache, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token a row, ``[b]``; logits of the next, ``[b, V]``."""
        cache.position = cache.position + 1
        cache.mask = torch.cat([cache.mask, torch.ones_like(cache.position)], dim=1)
        embeds = self._model.get_input_embeddings()(self._tensor(tokens)[:, None])  # [b, 1, d]
        return self._forward(cache, embeds, cache.position)

    def close(self) -> None:
        """Nothing: the model belongs to the caller."""

    def _forward(self, cache: _Cache, embeds: torch.Tensor, position: torch.Tensor) -> NDArray[np.float32]:
        output = self._model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=cache.mask,
            position_ids=position,
            past_key_values=cache.past,
            use_cache=True,
        )
        logits = self._model.lm_head(output.last_hidden_state[:, -1])  # [b, V]
        return np.asarray(logits.float().cpu().numpy())

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)
