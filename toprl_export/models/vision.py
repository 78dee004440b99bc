"""The vision tower, walked layer by layer, and the attention inside it, computed only as far as a scorer reads it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

TOWERS = ("clip_vision_model", "siglip_vision_model")
"""The kinds of tower that are walked here, by Hugging Face's ``model_type``."""


def tower_states(tower: Any, pixel_values: Tensor, layers: tuple[int, ...]) -> list[Tensor]:
    """The tower's hidden states behind some layers, as Hugging Face's ``hidden_states`` counts them.

    They never pass through the norm behind the last layer. Layers after the last one asked for are not run, and no
    other state stays alive in an exported graph.

    Args:
        tower: a Hugging Face CLIP or SigLIP vision model.
        pixel_values: ``[b, 3, h, w]`` of the tower's own type.
        layers: 0 for the embeddings, i for the output of layer i - 1; no negative numbers.

    Returns:
        ``[b, s, d]`` each, over all s tokens, the class token (if any) first.
    """
    hidden = tower.embeddings(pixel_values)  # [b, s, d]
    if hasattr(tower, "pre_layrnorm"):  # CLIP's, spelled so in transformers; SigLIP has none
        hidden = tower.pre_layrnorm(hidden)
    states = [hidden]
    for layer in tower.encoder.layers[: max(layers)]:
        hidden = layer(hidden, attention_mask=None)
        states.append(hidden)
    return [states[layer] for layer in layers]


def patch_attention(tower: Any, pixel_values: Tensor, layer: int) -> Tensor:
    """The attention that the tokens of a tower receive in one layer, averaged over heads.

    With a class token it is that token's attention, one row a head; without one, or with one that nothing has trained
    to look at anything, the average over all patches, which takes the whole map of that layer.

    Args:
        tower: a Hugging Face CLIP or SigLIP vision model; layers after ``layer`` are not run.
        pixel_values: ``[b, 3, h, w]`` of the tower's own type.
        layer: 0-based.

    Returns:
        float32 ``[b, s]`` over all s tokens, the class token (if any) first.
    """
    chosen = tower.encoder.layers[layer]
    attention = chosen.self_attn
    hidden = chosen.layer_norm1(tower_states(tower, pixel_values, (layer,))[0])
    looks = hidden[:, :1] if class_token_trained(tower) else hidden[:, 1:]
    querying = looks if has_class_token(tower) else hidden
    query = _heads(attention.q_proj(querying), attention.num_heads)  # [b, h, 1 or s, hd]
    keys = _heads(attention.k_proj(hidden), attention.num_heads)  # [b, h, s, hd]
    scores = (query @ keys.transpose(-1, -2)).float() * attention.scale  # [b, h, 1 or s, s]
    received: Tensor = scores.softmax(dim=-1).mean(dim=(1, 2))  # over heads and queries: [b, s]
    return received


def has_class_token(tower: Any) -> bool:
    """Whether the tower puts a token of its own before the patches."""
    return hasattr(tower.embeddings, "class_embedding")


def class_token_trained(tower: Any) -> bool:
    """Whether the class token's attention means something: false where ``class_token_trained`` is false in the vision
    configuration, as in a tower that was trained on its patches alone."""
    return bool(getattr(tower.config, "class_token_trained", True))


def _heads(projected: Tensor, heads: int) -> Tensor:
    batch, length, width = projected.shape
    return projected.reshape(batch, length, heads, width // heads).transpose(1, 2)
