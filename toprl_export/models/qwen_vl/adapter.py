"""Qwen2-VL and Qwen2.5-VL (`Qwen2VLForConditionalGeneration`, `Qwen2_5_VLForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.decoder import rotated
from toprl_export.models.qwen_vl.frontend import QwenVLFrontend
from toprl_export.runtime.frontend import Frontend


class Qwen2VLAdapter(LVLMAdapter):
    """Every patch sees all of its picture."""

    family = "qwen2_vl"

    @property
    def image_inputs(self) -> tuple[str, ...]:
        """See `LVLMAdapter.image_inputs`."""
        return ("pixel_values", "image_grid_thw")

    def encode(self, vision: Mapping[str, Tensor]) -> Tensor:
        """All pictures as one sequence of patches, each seeing its own picture or window; ``[r, d]``."""
        tower = self.model.model.visual
        hidden = tower.patch_embed(vision["pixel_values"].to(self.dtype))  # [N, d_vision]
        rotary = tower.rotary_pos_emb(hidden, vision["patch_position"])  # [N, head_dim] each
        whole = _same(vision["patch_picture"])
        window = _same(vision["patch_window"]) if "patch_window" in vision else whole
        everywhere = getattr(tower, "fullatt_block_indexes", range(len(tower.blocks)))
        for index, block in enumerate(tower.blocks):
            mask = whole if index in everywhere else window
            hidden = hidden + _attention(block.attn, block.norm1(hidden), rotary, mask)
            hidden = hidden + block.mlp(block.norm2(hidden))
        merged: Tensor = tower.merger(hidden)
        return merged

    def _frontend(self, processor: Any) -> Frontend:
        return QwenVLFrontend(processor, self.model.config.vision_config.spatial_merge_size, self._window())

    def _window(self) -> int | None:
        return None


class Qwen25VLAdapter(Qwen2VLAdapter):
    """Every patch sees its window, and all of its picture in a few blocks."""

    family = "qwen2_5_vl"

    def _window(self) -> int:
        vision = self.model.config.vision_config
        return int(vision.window_size // vision.spatial_merge_size // vision.patch_size)


def _same(number: Tensor) -> Tensor:
    """Which patches share a picture or window, ``bool [N, N]``."""
    return number[:, None] == number[None]


def _attention(attention: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    """The tower's attention with a mask, ``[N, d_vision]``; its own code splits the sequence, which no graph can."""
    count = hidden.shape[0]
    split = attention.qkv(hidden).reshape(1, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, keys, values = split.unbind(0)  # [1, h, N, hd] each
    query, keys = (rotated(x.float(), rotary).to(x.dtype) for x in (query, keys))
    seen = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask[None, None], scale=attention.scaling)
    projected: Tensor = attention.proj(seen.transpose(1, 2).reshape(count, -1))
    return projected
