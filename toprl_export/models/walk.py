"""The one walk through a decoder: prefill with pruning stages, and decode over caches of different lengths.

Training, the PyTorch reference, baselines and the exported graph all run this code; they differ in ``decide`` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toprl_export.models.decoder import Decoder, LayerCache, attention_rows
from toprl_export.pruning.scorer import ScorerNeeds, StageInputs
from toprl_export.pruning.select import gather_tokens


@dataclass(frozen=True)
class TokenTensors:
    """A tokenised batch: all ``int64``; rows are left-padded and hold the same number n of visual tokens.

    ``input_ids``, ``attention_mask`` and ``position_ids`` are ``[b, s]``; ``visual_index`` ``[b, n]`` and
    ``text_index`` ``[b, s-n]`` say where in the sequence the visual and the other tokens stand, ascending.
    ``segments`` ``[b, s]`` packs independent questions behind one image: tokens see segment 0 and their own.
    ``question_end`` ``[b]`` says where the question's last token stands when answers follow it; None: at the end.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    visual_index: Tensor
    text_index: Tensor
    segments: Tensor | None = None
    question_end: Tensor | None = None


class Decision(NamedTuple):
    """Which of a stage's tokens go on: ``kept`` ``int64 [b, k]`` ascending; ``alive`` ``bool [b, k]`` marks the real
    ones where rows keep different numbers (None: all)."""

    kept: Tensor
    alive: Tensor | None = None


Decide = Callable[[StageInputs], Decision]
NOTHING = ScorerNeeds()


@dataclass(frozen=True)
class Prefill:
    """``logits`` of the last position ``[b, V]``; ``hidden`` normed states of the last layer ``[b, s_L, d]``; per layer
    ``keys`` and ``values`` ``[b, kv_heads, s_l, head_dim]``; per stage ``kept`` original visual indices ``[b, k_t]``;
    per group of layers ``masks`` of valid tokens ``bool [b, s_g]``."""

    logits: Tensor
    hidden: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    kept: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Tokens:
    """The sequence between two stages, in its original order; ``place`` is where each token stood at first."""

    hidden: Tensor  # [b, s, d]
    cos: Tensor  # [b, s, head_dim]
    sin: Tensor
    place: Tensor  # int64 [b, s]
    valid: Tensor  # bool [b, s]
    segments: Tensor | None  # int64 [b, s]
    visual_slot: Tensor  # int64 [b, n_t]: where the visual tokens stand now
    text_slot: Tensor  # int64 [b, t]
    visual_origin: Tensor  # int64 [b, n_t]: which of the n visual tokens they are
    asked: Tensor  # bool [b, t]: which text tokens are the question's

    def mask(self) -> Tensor:
        """Causal by original place, valid keys only, every token sees itself (Eq. 6); ``bool [b, 1, s, s]``."""
        return self._allowed(self.place, self.segments)[:, None]

    def mask_rows(self, slots: Tensor) -> Tensor:
        """What the tokens at ``slots``, ``int64 [b, q]``, may attend to, ``bool [b, q, s]``."""
        return self._allowed(
            self.place.gather(1, slots), None if self.segments is None else self.segments.gather(1, slots)
        )

    def _allowed(self, place: Tensor, segments: Tensor | None) -> Tensor:
        allowed = (place[:, :, None] >= self.place[:, None, :]) & self.valid[:, None, :]
        if self.segments is not None and segments is not None:
            own = segments[:, :, None] == self.segments[:, None, :]
            allowed = allowed & (own | (self.segments[:, None, :] == 0))
        return allowed | (place[:, :, None] == self.place[:, None, :])


def embed_tokens(decoder: Decoder, tokens: TokenTensors, visual: Tensor) -> _Tokens:
    """Merge projected visual embeddings ``[b, n, d]`` into the embedded text, in sequence order."""
    text = decoder.embed(tokens.input_ids.gather(1, tokens.text_index))  # [b, t, d]
    order = torch.cat([tokens.visual_index, tokens.text_index], dim=1).argsort(dim=1)
    hidden = gather_tokens(torch.cat([visual.to(text.dtype), text], dim=1), order)  # [b, s, d]
    cos, sin = decoder.rotary(hidden, tokens.position_ids)
    batch, length = tokens.input_ids.shape
    return _Tokens(
        hidden=hidden,
        cos=cos,
        sin=sin,
        place=torch.arange(length, device=hidden.device).expand(batch, -1),
        valid=tokens.attention_mask.bool(),
        segments=tokens.segments,
        visual_slot=tokens.visual_index,
        text_slot=tokens.text_index,
        visual_origin=torch.arange(visual.shape[1], device=hidden.device).expand(batch, -1),
        asked=_asked(tokens),
    )


def _asked(tokens: TokenTensors) -> Tensor:
    """Which text tokens stand between the image and the answer, ``bool [b, t]``."""
    asked = (tokens.text_index > tokens.visual_index[:, -1:]) & tokens.attention_mask.gather(
        1, tokens.text_index
    ).bool()
    if tokens.question_end is not None:
        asked = asked & (tokens.text_index <= tokens.question_end[:, None])
    return asked


@dataclass(frozen=True)
class Prefix:
    """A walk as it comes to ``layer``, before any stage there: nothing is pruned yet, so it serves every mask.

    ``state`` is the sequence that enters the layer, ``rows`` the attention in the layer before it, ``float32
    [b, q, s]``, where a stage at ``layer`` needs that.
    """

    layer: int
    state: _Tokens
    rows: Tensor | None = None

    def repeated(self, times: int) -> Prefix:
        """Every row ``times`` times in succession."""
        fields = {name: x.repeat_interleave(times, dim=0) for name, x in vars(self.state).items() if x is not None}
        rows = None if self.rows is None else self.rows.repeat_interleave(times, dim=0)
        return Prefix(self.layer, replace(self.state, **fields), rows)


def walk_prefix(
    decoder: Decoder, tokens: TokenTensors, visual: Tensor, layers: int, needs: ScorerNeeds = NOTHING
) -> Prefix:
    """Run the first ``layers`` layers, for walks that start from there.

    Args:
        decoder: the frozen decoder.
        tokens: the batch.
        visual: projected visual embeddings ``[b, n, d]``.
        layers: how many, 0 to all.
        needs: what a stage before layer ``layers`` will be given.
    """
    start = Prefix(0, embed_tokens(decoder, tokens, visual))
    reached = _run_layers(decoder, start, layers, (layers,), _undecided, needs, None)
    return Prefix(layers, reached.state, reached.rows)


def walk_prefill(
    decoder: Decoder,
    tokens: TokenTensors,
    visual: Tensor,
    stage_layers: tuple[int, ...],
    decide: Decide,
    needs: ScorerNeeds = NOTHING,
    saliency: Tensor | None = None,
) -> Prefill:
    """Run all layers; before each of ``stage_layers`` let ``decide`` choose which visual tokens go on.

    Args:
        decoder: the frozen decoder.
        tokens: the batch.
        visual: projected visual embeddings ``[b, n, d]``.
        stage_layers: ascending 0-based layers before which a stage stands; empty for no pruning.
        decide: called once a stage with the alive visual tokens' states.
        needs: what else ``decide`` is given.
        saliency: the vision tower's attention on each of the n patches, ``float32 [b, n]``, where it is needed.

    Returns:
        See `Prefill`. Kept tokens keep their original positions: cos and sin are gathered with them.
    """
    start = Prefix(0, embed_tokens(decoder, tokens, visual))
    return walk_from(decoder, start, stage_layers, decide, needs, saliency)


def walk_from(
    decoder: Decoder,
    prefix: Prefix,
    stage_layers: tuple[int, ...],
    decide: Decide,
    needs: ScorerNeeds = NOTHING,
    saliency: Tensor | None = None,
) -> Prefill:
    """`walk_prefill` from ``prefix`` on; what is told per layer or group of layers starts at ``prefix.layer``.

    Raises:
        ValueError: a stage stands before the layer that the prefix has come to.
    """
    if stage_layers and stage_layers[0] < prefix.layer:
        raise ValueError(f"the walk starts at layer {prefix.layer}, behind the stage before layer {stage_layers[0]}")
    ran = _run_layers(decoder, prefix, len(decoder), stage_layers, decide, needs, saliency)
    hidden = decoder.norm(ran.state.hidden)
    return Prefill(
        logits=decoder.head(hidden[:, -1]).float(),
        hidden=hidden,
        keys=tuple(cache.keys for cache in ran.caches),
        values=tuple(cache.values for cache in ran.caches),
        kept=tuple(ran.kept),
        masks=tuple(ran.masks),
    )


class _Ran(NamedTuple):
    """Where some layers led: see `Prefix` and `Prefill`."""

    state: _Tokens
    rows: Tensor | None
    caches: list[LayerCache]
    kept: list[Tensor]
    masks: list[Tensor]


def _run_layers(
    decoder: Decoder,
    start: Prefix,
    stop: int,
    stage_layers: tuple[int, ...],
    decide: Decide,
    needs: ScorerNeeds,
    saliency: Tensor | None,
) -> _Ran:
    """The walk itself, from ``start`` up to layer ``stop``, which is not run."""
    state, rows = start.state, start.rows
    caches: list[LayerCache] = []
    kept: list[Tensor] = []
    masks: list[Tensor] = []
    mask: Tensor | None = None
    own_rows = needs.attention_layer == "next"
    for index in range(start.layer, stop):
        layer = decoder.layer(index)
        if index in stage_layers:
            if index == 0 or own_rows:
                rows = _attention(layer, state, needs)
            state = _prune(state, len(kept), decide, rows, needs, saliency)
            kept.append(state.visual_origin)
            mask = None
        if mask is None:
            mask = state.mask()
            masks.append(state.valid)
        if index + 1 in stage_layers and not own_rows:
            rows = _attention(layer, state, needs)
        hidden, cache = _run(layer, state.hidden, mask, (state.cos, state.sin), None)
        state = replace(state, hidden=hidden)
        caches.append(cache)
    return _Ran(state, rows, caches, kept, masks)


def _undecided(inputs: StageInputs) -> Decision:
    raise AssertionError(f"a prefix ends before its stage, yet stage {inputs.stage} was reached")


def _attention(layer: Any, state: _Tokens, needs: ScorerNeeds) -> Tensor | None:
    """Attention of the wanted text tokens on every token, ``float32 [b, q, s]``."""
    if needs.attention == "none":
        return None
    slots = state.text_slot
    if needs.attention == "last":
        order = torch.arange(slots.shape[1], device=slots.device)
        slots = slots.gather(1, (state.asked * order).argmax(1, keepdim=True))  # [b, 1]
    return attention_rows(layer, state.hidden, (state.cos, state.sin), slots, state.mask_rows(slots))


def _stage_inputs(
    state: _Tokens, stage: int, rows: Tensor | None, needs: ScorerNeeds, saliency: Tensor | None
) -> StageInputs:
    if rows is not None:
        rows = rows.gather(2, state.visual_slot[:, None].expand(-1, rows.shape[1], -1))  # [b, q, n_t]
    return StageInputs(
        stage=stage,
        visual=gather_tokens(state.hidden, state.visual_slot),
        alive=state.valid.gather(1, state.visual_slot),
        positions=state.visual_origin,
        attention=rows,
        text=gather_tokens(state.hidden, state.text_slot) if needs.text else None,
        asked=state.asked if needs.text or rows is not None else None,
        saliency=saliency.gather(1, state.visual_origin) if needs.saliency and saliency is not None else None,
    )


def _prune(
    state: _Tokens, stage: int, decide: Decide, rows: Tensor | None, needs: ScorerNeeds, saliency: Tensor | None
) -> _Tokens:
    """One stage: score the visual tokens, then gather everything that goes on, in sequence order."""
    decision = decide(_stage_inputs(state, stage, rows, needs, saliency))
    survivors = state.visual_slot.gather(1, decision.kept)  # [b, k]
    both = torch.cat([survivors, state.text_slot], dim=1)
    order = both.argsort(dim=1)  # [b, k+t]: where in `both` the tokens stand in sequence order
    slots = both.gather(1, order)
    valid = state.valid.gather(1, both)
    if decision.alive is not None:
        valid = torch.cat(
            [valid[:, : decision.kept.shape[1]] & decision.alive, valid[:, decision.kept.shape[1] :]], dim=1
        )
    back = order.argsort(dim=1)  # where each of `both` went
    count = decision.kept.shape[1]
    return _Tokens(
        hidden=gather_tokens(state.hidden, slots),
        cos=gather_tokens(state.cos, slots),
        sin=gather_tokens(state.sin, slots),
        place=state.place.gather(1, slots),
        valid=valid.gather(1, order),
        segments=None if state.segments is None else state.segments.gather(1, slots),
        visual_slot=back[:, :count],
        text_slot=back[:, count:],
        visual_origin=state.visual_origin.gather(1, decision.kept),
        asked=state.asked,
    )


def walk_decode(
    decoder: Decoder,
    token: Tensor,
    position: Tensor,
    keys: tuple[Tensor, ...],
    values: tuple[Tensor, ...],
    masks: tuple[Tensor, ...],
    group_of_layer: tuple[int, ...],
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """One token: ``token`` and ``position`` ``int64 [b, 1]``; caches ``[b, kv_heads, s_l, head_dim]`` per layer.

    Args:
        decoder: the frozen decoder.
        token: the last token chosen.
        position: its position id, counted in the unpruned sequence.
        keys: the cached keys of every layer.
        values: the cached values of every layer.
        masks: per group, valid cached tokens and the new one, ``bool [b, s_g + 1]``.
        group_of_layer: which of ``masks`` each layer uses.

    Returns:
        ``float32 [b, V]`` logits and the caches with the new token appended.
    """
    hidden = decoder.embed(token)  # [b, 1, d]
    rotary = decoder.rotary(hidden, position)
    grown: list[LayerCache] = []
    for index, group in enumerate(group_of_layer):
        mask = masks[group][:, None, None, :]
        hidden, cache = _run(decoder.layer(index), hidden, mask, rotary, (keys[index], values[index]))
        grown.append(cache)
    logits = decoder.head(decoder.norm(hidden)[:, -1]).float()
    return logits, tuple(cache.keys for cache in grown), tuple(cache.values for cache in grown)


def layer_groups(stage_layers: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """The group of each layer: layers between two stages share one mask; the first group is 0."""
    starts = sorted({0, *stage_layers})
    return tuple(max(group for group, start in enumerate(starts) if start <= layer) for layer in range(layers))


def _run(
    layer: Any, hidden: Tensor, mask: Tensor, rotary: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, LayerCache]:
    cache = LayerCache(past)
    output = layer(hidden, attention_mask=mask, position_embeddings=rotary, past_key_values=cache, use_cache=True)
    return (output[0] if isinstance(output, tuple) else output), cache
