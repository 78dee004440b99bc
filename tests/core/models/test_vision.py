"""The vision tower's attention against the maps that Hugging Face's eager implementation returns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from tests.support.tiny_llava import IMAGE_PIXELS, VISUAL_TOKENS, tiny_adapter, tiny_pixels
from toprl_export.errors import UserError
from toprl_export.models.llava import LlavaAdapter
from toprl_export.models.load import load_model
from toprl_export.models.mini.architecture import mini_config
from toprl_export.models.reference import ReferenceRunner
from toprl_export.models.vision import class_token_trained

PIXELS = tiny_pixels(3)


def adapter_of(feature_layer: int, strategy: str = "default") -> LlavaAdapter:
    adapter = tiny_adapter()
    adapter.model.config.vision_feature_layer = feature_layer
    adapter.model.config.vision_feature_select_strategy = strategy
    return adapter


def siglip_adapter() -> LlavaAdapter:
    """The same model with a tower that has no class token."""
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_PIXELS,
        patch_size=8,
        vision_use_head=False,
    )
    adapter = adapter_of(-1, "full")
    adapter.model.model.vision_tower = SiglipVisionModel(config).eval().requires_grad_(False)
    for parameter in adapter.model.model.vision_tower.parameters():
        if parameter.ndim == 2:
            parameter.mul_(8)
    return adapter


def eager_maps(adapter: LlavaAdapter) -> tuple[Tensor, ...]:
    """Per layer, mean over heads, ``[b, s, s]``."""
    tower = adapter.model.model.vision_tower
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        maps = tower(PIXELS, output_attentions=True).attentions
    tower.set_attn_implementation("sdpa")
    return tuple(layer.mean(1) for layer in maps)


@pytest.mark.parametrize(("feature_layer", "layer"), [(-1, 1), (-2, 0), (1, 0), (2, 1)])
def test_saliency_is_the_class_tokens_row_of_the_layer_that_feeds_the_projector(feature_layer: int, layer: int) -> None:
    adapter = adapter_of(feature_layer)
    maps = eager_maps(adapter)
    saliency = ReferenceRunner(adapter).saliency(PIXELS.numpy())
    assert saliency.shape == (3, VISUAL_TOKENS)
    assert saliency.dtype == torch.float32
    torch.testing.assert_close(saliency, maps[layer][:, 0, 1:], atol=1e-6, rtol=1e-4)
    assert (saliency - maps[1 - layer][:, 0, 1:]).abs().max() > 1e-3
    assert (saliency - maps[layer][:, :, 1:].mean(1)).abs().max() > 1e-3


def test_the_feature_layer_is_the_one_that_hugging_face_projects() -> None:
    for layer in (-1, -2, 1):
        adapter = adapter_of(layer)
        with torch.no_grad():
            stock = torch.stack(list(adapter.model.get_image_features(PIXELS).pooler_output))
            assert torch.equal(adapter.encode_image(PIXELS), stock)


def test_a_class_token_among_the_visual_ones_is_never_dropped() -> None:
    adapter = adapter_of(-1, "full")
    saliency = adapter.vision_saliency(PIXELS)
    assert saliency.shape == adapter.encode_image(PIXELS).shape[:2] == (3, VISUAL_TOKENS + 1)
    assert (saliency.argmax(1) == 0).all()
    assert torch.equal(saliency[:, 1:], adapter_of(-1).vision_saliency(PIXELS))


def test_without_a_class_token_it_is_the_attention_received_on_average() -> None:
    adapter = siglip_adapter()
    saliency = adapter.vision_saliency(PIXELS)
    maps = eager_maps(adapter)
    assert saliency.shape == (3, adapter.visual_tokens) == (3, VISUAL_TOKENS)
    torch.testing.assert_close(saliency, maps[1].mean(1), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(saliency.sum(1), torch.ones(3))
    assert (saliency - maps[1][:, 0]).abs().max() > 1e-3


def test_an_untrained_class_token_is_passed_over() -> None:
    adapter = adapter_of(-1)
    adapter.model.model.vision_tower.config.class_token_trained = False
    maps = eager_maps(adapter)
    saliency = adapter.vision_saliency(PIXELS)
    torch.testing.assert_close(saliency, maps[1][:, 1:, 1:].mean(1), atol=1e-6, rtol=1e-4)
    assert (saliency - maps[1][:, 0, 1:]).abs().max() > 1e-3


def test_minis_class_token_was_not_trained() -> None:
    tower = load_model("mini").model.model.vision_tower
    assert not class_token_trained(tower) and not mini_config().vision_config.class_token_trained
    assert class_token_trained(adapter_of(-1).model.model.vision_tower)


def test_embeddings_that_no_attention_made_have_no_saliency() -> None:
    with pytest.raises(UserError, match="model tiny projects the vision tower's embeddings, which no attention"):
        adapter_of(0).vision_saliency(PIXELS)
