"""The one walk through a decoder: prefill with pruning stages, and decode over caches of different lengths.

Training, the PyTorch reference, baselines and the exported graph all run this code; they differ in ``decide`` alone.

Four index spaces meet here. For a left-padded prompt of s = 9 tokens, n = 4 of them visual, and a first stage that
keeps the visual tokens v1 and v3:

    token                            <pad>  <s>   v0   v1   v2   v3  what   is   it
    position id                          0    0    1    2    3    4     5    6    7
    prompt slot                          0    1    2    3    4    5     6    7    8
    visual origin                                  0    1    2    3
    living slot before the stage         4    5    0    1    2    3     6    7    8
    living slot after it                 2    3         0         1     4    5    6

- *Position id*: what rotary embeddings turn by; pads do not count. It belongs to a token for good: decode goes on at 8,
  the unpruned length, however many tokens are left.
- *Prompt slot*, 0 to s - 1: the column of ``input_ids``. Causality, padding, segments and rotary tables are looked up
  by it (``visual_index`` and ``text_index`` are prompt slots), so tokens may be held in any order.
- *Visual origin*, 0 to n - 1: which of its image's visual tokens one is; what is reported as kept, and where its
  saliency stands.
- *Living slot*, 0 to n_t + t - 1: the row of the hidden states, caches and masks right now: the n_t visual tokens that
  are left, then all t text tokens, pads included. `Decision.kept` counts in living slots: a second stage that keeps v3
  alone says 1, which is visual origin 3, prompt slot 5 and position id 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from toprl_export.models.decoder import Decoder, LayerCache, attention_rows, key_norms
from toprl_export.pruning.scorer import ScorerNeeds, StageInputs
from toprl_export.pruning.select import gather_tokens


@dataclass(frozen=True)
class TokenTensors:
    """A tokenised batch: all ``int64``; rows are left-padded and hold the same number n of visual slots.

    ``input_ids``, ``attention_mask`` and ``position_ids`` are ``[b, s]`` (``position_ids`` ``[3, b, s]`` for M-RoPE);
    ``visual_index`` ``[b, n]`` and ``text_index`` ``[b, s-n]`` are the prompt slots of the visual and of the other
    tokens, ascending. Where a row has fewer visual tokens than n, its first visual slots are pads.
    ``visual_rows`` ``[b, n]``: which rows of the encoded pictures ``[r, d]`` the visual slots show; None where they are
    given as ``[b, n, d]``.
    ``segments`` ``[b, s]`` packs independent questions behind one image: tokens see segment 0 and their own.
    ``question_end`` ``[b]`` is the prompt slot of the question's last token where answers follow it; None: the last.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    visual_index: Tensor
    text_index: Tensor
    visual_rows: Tensor | None = None
    segments: Tensor | None = None
    question_end: Tensor | None = None


class Decision(NamedTuple):
    """Which of a stage's visual tokens survive it.

    ``kept``, ``int64 [b, k]``, holds their living slots, ascending. Where batch rows keep different numbers, the
    shorter ones are filled up with tokens that ``alive``, ``bool [b, k]``, marks as dropped (None: all are alive).
    """

    kept: Tensor
    alive: Tensor | None = None


Decide = Callable[[StageInputs], Decision]
NO_NEEDS = ScorerNeeds()
"""The visual tokens' own states suffice."""


@dataclass(frozen=True)
class Prefill:
    """What a prefill leaves behind.

    ``logits`` of the last position ``[b, V]``; ``hidden`` normed states of the last layer ``[b, s_L, d]``; per layer
    ``keys`` and ``values`` ``[b, kv_heads, s_l, head_dim]``; per stage ``kept`` visual origins ``[b, k_t]``; per group
    of layers ``masks`` of valid tokens ``bool [b, s_g]``. States, caches and masks go by living slot: the visual tokens
    come first, wherever the image stands in the prompt.
    """

    logits: Tensor
    hidden: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    kept: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Sequence:
    """The living tokens between two stages: the visual ones that are left, then all text tokens, each kind ascending.

    No layer reads this order: attention goes by prompt slot, and what belongs to a prompt slot is looked up by it. So a
    stage has nothing to sort, and finds its tokens without an index.
    """

    visual: Tensor  # [b, n_t, d]
    text: Tensor  # [b, t, d]
    visual_slot: Tensor  # int64 [b, n_t]: prompt slots
    text_slot: Tensor  # int64 [b, t]: prompt slots
    visual_origin: Tensor | None  # int64 [b, n_t]; None before the first stage: 0 to n - 1
    question_mask: Tensor  # bool [b, t]: which text tokens are the question's
    prompt_valid: Tensor  # bool [b, s], by prompt slot: neither padding nor dropped by a mask
    prompt_segments: Tensor | None  # int64 [b, s], by prompt slot
    prompt_cos: Tensor  # [b, s, head_dim], by prompt slot
    prompt_sin: Tensor
    visual_embeddings: Tensor | None = None  # [b, n, d], of all visual tokens, where a scorer needs them
    visual_real: Tensor | None = None  # bool [b, n]: which of them are no pads, where rows have different numbers
    text_embeddings: Tensor | None = None  # [b, t, d]

    @property
    def prompt_slot(self) -> Tensor:
        """The prompt slot of each living token, ``int64 [b, n_t + t]``."""
        return torch.cat([self.visual_slot, self.text_slot], dim=1)

    @property
    def valid(self) -> Tensor:
        """``bool [b, n_t + t]``."""
        return self.prompt_valid.gather(1, self.prompt_slot)

    def hidden(self) -> Tensor:
        """``[b, n_t + t, d]``."""
        return torch.cat([self.visual, self.text], dim=1)

    def with_hidden(self, hidden: Tensor) -> _Sequence:
        """The same tokens with other states, ``[b, n_t + t, d]``."""
        count = self.visual.shape[1]
        return replace(self, visual=hidden[:, :count], text=hidden[:, count:])

    def rotary(self) -> tuple[Tensor, Tensor]:
        """cos and sin of each token, ``[b, n_t + t, head_dim]``: gathered with the tokens, never recomputed."""
        return gather_tokens(self.prompt_cos, self.prompt_slot), gather_tokens(self.prompt_sin, self.prompt_slot)

    def mask(self) -> Tensor:
        """Causal by prompt slot, valid keys only, every token sees itself (Eq. 6); ``bool [b, 1, s_t, s_t]``."""
        return self._allowed(self.prompt_slot)

    def mask_rows(self, living_slots: Tensor) -> Tensor:
        """What the tokens at ``living_slots``, ``int64 [b, q]``, may attend to, ``bool [b, q, n_t + t]``."""
        return self._allowed(self.prompt_slot.gather(1, living_slots)).squeeze(1)

    def _allowed(self, queries: Tensor) -> Tensor:
        """What tokens at the prompt slots ``queries``, ``int64 [b, q]``, may attend to, ``bool [b, 1, q, n_t + t]``."""
        query, key = queries[:, None, :, None], self.prompt_slot[:, None, None]  # [b, 1, q, 1], [b, 1, 1, n_t + t]
        allowed = (query >= key) & self.valid[:, None, None]
        if self.prompt_segments is not None:
            own = self.prompt_segments.gather(1, queries)[:, None, :, None]
            theirs = self.prompt_segments.gather(1, self.prompt_slot)[:, None, None]
            allowed = allowed & ((own == theirs) | (theirs == 0))
        # A pad that saw nothing would have an empty softmax, and its NaN would reach real tokens through the values.
        return allowed | (query == key)


def embed_tokens(decoder: Decoder, tokens: TokenTensors, visual: Tensor, needs: ScorerNeeds = NO_NEEDS) -> _Sequence:
    """The sequence that enters layer 0, of projected visual embeddings (see `walk_prefill`) and the embedded text."""
    text = decoder.embed(tokens.input_ids.gather(1, tokens.text_index))  # [b, t, d]
    cos, sin = decoder.rotary(text, tokens.position_ids)
    visual = visual.to(text.dtype)  # the vision graph returns float32 in every precision
    if tokens.visual_rows is not None:
        visual = visual[tokens.visual_rows]  # [r, d] -> [b, n, d]
    return _Sequence(
        visual=visual,
        text=text,
        visual_slot=tokens.visual_index,
        text_slot=tokens.text_index,
        visual_origin=None,
        question_mask=_question_mask(tokens),
        prompt_valid=tokens.attention_mask.bool(),
        prompt_segments=tokens.segments,
        prompt_cos=cos,
        prompt_sin=sin,
        visual_embeddings=visual if needs.embeddings else None,
        visual_real=_visual_real(tokens) if needs.embeddings else None,
        text_embeddings=text if needs.embeddings else None,
    )


def _visual_real(tokens: TokenTensors) -> Tensor | None:
    return None if tokens.visual_rows is None else tokens.attention_mask.gather(1, tokens.visual_index).bool()


def _question_mask(tokens: TokenTensors) -> Tensor:
    """Which text tokens stand between the image and the answer, ``bool [b, t]``."""
    # By position alone, so that it can be exported: a `Frontend` puts the question behind the image.
    after_image = tokens.text_index > tokens.visual_index[:, -1:]
    question_mask = after_image & tokens.attention_mask.gather(1, tokens.text_index).bool()
    if tokens.question_end is not None:
        question_mask = question_mask & (tokens.text_index <= tokens.question_end[:, None])
    return question_mask


class _Seen(NamedTuple):
    """What a stage may need of the layer just run, or of the one about to run.

    ``attention`` of the question's tokens on all living ones, ``float32 [b, q, s_t]``; ``key_norms``, see
    `toprl_export.models.decoder.key_norms`, ``float32 [b, s_t]``. None unless needed.
    """

    attention: Tensor | None = None
    key_norms: Tensor | None = None


@dataclass(frozen=True)
class Prefix:
    """A walk as it comes to ``layer``, before any stage there: nothing is pruned yet, so every rollout can start here.

    ``state`` is the sequence that enters the layer, ``seen`` what a stage at ``layer`` needs of the layer before it.
    """

    layer: int
    state: _Sequence
    seen: _Seen

    def repeated(self, times: int) -> Prefix:
        """Every batch row ``times`` times in succession."""
        fields = {name: x.repeat_interleave(times, dim=0) for name, x in vars(self.state).items() if x is not None}
        seen = _Seen(*(None if x is None else x.repeat_interleave(times, dim=0) for x in self.seen))
        return Prefix(self.layer, replace(self.state, **fields), seen)


def walk_prefix(
    decoder: Decoder, tokens: TokenTensors, visual: Tensor, layers: int, needs: ScorerNeeds = NO_NEEDS
) -> Prefix:
    """Run the first ``layers`` layers, for walks that start from there.

    Args:
        decoder: the frozen decoder.
        tokens: the batch.
        visual: projected visual embeddings ``[b, n, d]``.
        layers: how many, 0 to all.
        needs: what a stage before layer ``layers`` will be given.
    """
    start = Prefix(0, embed_tokens(decoder, tokens, visual, needs), _Seen())
    # A stage just behind the end, so that the attention it will need is taken from the last layer that is run here.
    reached = _run_layers(decoder, start, layers, (layers,), _undecided, needs, None)
    return Prefix(layers, reached.state, reached.seen)


def walk_prefill(
    decoder: Decoder,
    tokens: TokenTensors,
    visual: Tensor,
    stage_layers: tuple[int, ...],
    decide: Decide,
    needs: ScorerNeeds = NO_NEEDS,
    saliency: Tensor | None = None,
) -> Prefill:
    """Run all layers; before each of ``stage_layers`` let ``decide`` choose which visual tokens go on.

    Args:
        decoder: the frozen decoder.
        tokens: the batch.
        visual: projected visual embeddings ``[b, n, d]``, or ``[r, d]`` where the batch says which rows it shows.
        stage_layers: ascending 0-based layers before which a stage stands; empty for no pruning.
        decide: called once a stage with the states of the visual tokens that are left.
        needs: what else ``decide`` is given.
        saliency: the vision tower's attention on each of the n patches, ``float32 [b, n]``, where it is needed.

    Returns:
        See `Prefill`. Kept tokens keep their position ids: cos and sin are gathered with them.
    """
    start = Prefix(0, embed_tokens(decoder, tokens, visual, needs), _Seen())
    return walk_from(decoder, start, stage_layers, decide, needs, saliency)


def walk_from(
    decoder: Decoder,
    prefix: Prefix,
    stage_layers: tuple[int, ...],
    decide: Decide,
    needs: ScorerNeeds = NO_NEEDS,
    saliency: Tensor | None = None,
) -> Prefill:
    """`walk_prefill` from ``prefix`` on; caches and masks begin with those of ``prefix.layer``.

    Raises:
        ValueError: a stage stands before the layer that the prefix has come to.
    """
    if stage_layers and stage_layers[0] < prefix.layer:
        raise ValueError(f"the walk starts at layer {prefix.layer}, behind the stage before layer {stage_layers[0]}")
    ran = _run_layers(decoder, prefix, len(decoder), stage_layers, decide, needs, saliency)
    hidden = decoder.norm(ran.hidden)
    return Prefill(
        # Padding is at the left and text stands last, so the last living slot is every prompt's last token.
        logits=decoder.head(hidden[:, -1]).float(),
        hidden=hidden,
        keys=tuple(cache.keys for cache in ran.caches),
        values=tuple(cache.values for cache in ran.caches),
        kept=tuple(ran.kept),
        masks=tuple(ran.masks),
    )


class _Ran(NamedTuple):
    """Where some layers led: see `Prefix` and `Prefill`."""

    state: _Sequence
    seen: _Seen
    hidden: Tensor
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
    state, seen, hidden = start.state, start.seen, start.state.hidden()
    caches: list[LayerCache] = []
    kept: list[Tensor] = []
    masks: list[Tensor] = []
    # Rotary tables and mask are the same for all layers between two stages: made once, forgotten at the next stage.
    shared: tuple[tuple[Tensor, Tensor], Tensor] | None = None
    in_next_layer = needs.attention_layer == "next"
    for index in range(start.layer, stop):
        layer = decoder.layer(index)
        if index in stage_layers:
            if index == 0 or in_next_layer:  # before layer 0 no layer has run whose attention could be taken
                seen = _see(layer, state, hidden, needs)
            state = _prune(state, len(kept), decide, seen, needs, saliency, decoder.norm)
            assert state.visual_origin is not None
            kept.append(state.visual_origin)
            hidden, shared = state.hidden(), None
        if shared is None:
            shared = state.rotary(), state.mask()
            masks.append(state.valid)
        if index + 1 in stage_layers and not in_next_layer:
            # From the states that enter this layer, because attention is made of its inputs.
            seen = _see(layer, state, hidden, needs)
        rotary, mask = shared
        hidden, cache = _run(layer, hidden, mask, rotary, None)
        state = state.with_hidden(hidden)
        caches.append(cache)
    return _Ran(state, seen, hidden, caches, kept, masks)


def _undecided(inputs: StageInputs) -> Decision:
    raise AssertionError(f"a prefix ends before its stage, yet stage {inputs.stage} was reached")


def _see(layer: Any, state: _Sequence, hidden: Tensor, needs: ScorerNeeds) -> _Seen:
    """What ``needs`` names of ``layer``, which ``hidden`` enters."""
    norms = key_norms(layer, hidden, state.rotary()) if needs.key_norms else None
    return _Seen(_attention(layer, state, hidden, needs), norms)


def _attention(layer: Any, state: _Sequence, hidden: Tensor, needs: ScorerNeeds) -> Tensor | None:
    """Attention of the text tokens that ``needs`` names on every token, ``float32 [b, q, n_t + t]``."""
    if needs.attention == "none":
        return None
    order = torch.arange(state.question_mask.shape[1], device=hidden.device)  # [t]
    if needs.attention == "last":
        # The last true element: argmax finds the largest place in the question. Unlike `nonzero` it can be exported.
        queries = (state.question_mask * order).argmax(1, keepdim=True)  # [b, 1]
    else:
        queries = order.expand(hidden.shape[0], -1)  # [b, t]
    living_slots = queries + state.visual.shape[1]  # text stands behind the visual tokens
    return attention_rows(layer, hidden, state.rotary(), living_slots, state.mask_rows(living_slots))


def _stage_inputs(
    state: _Sequence, stage: int, seen: _Seen, needs: ScorerNeeds, saliency: Tensor | None, norm: nn.Module
) -> StageInputs:
    attention, norms = seen
    batch, count = state.visual_slot.shape
    origin = state.visual_origin
    if saliency is not None and origin is not None:
        saliency = saliency.gather(1, origin)  # [b, n] -> [b, n_t]
    return StageInputs(
        stage=stage,
        visual=norm(state.visual) if needs.normed else state.visual,
        alive=state.prompt_valid.gather(1, state.visual_slot),
        origin=torch.arange(count, device=state.visual.device).expand(batch, -1) if origin is None else origin,
        attention=None if attention is None else attention[:, :, :count],  # [b, q, n_t]
        text=None if not needs.text else norm(state.text) if needs.normed else state.text,
        question_mask=state.question_mask if needs.text or attention is not None else None,
        saliency=saliency if needs.saliency else None,
        key_norms=norms,
        visual_embeddings=state.visual_embeddings,
        visual_real=state.visual_real,
        text_embeddings=state.text_embeddings,
    )


def _prune(
    state: _Sequence,
    stage: int,
    decide: Decide,
    seen: _Seen,
    needs: ScorerNeeds,
    saliency: Tensor | None,
    norm: nn.Module,
) -> _Sequence:
    """One stage: let ``decide`` choose among the visual tokens, then gather the survivors."""
    kept, alive = decide(_stage_inputs(state, stage, seen, needs, saliency, norm))  # living slots [b, k]
    slot, valid, origin = state.visual_slot.gather(1, kept), state.prompt_valid, state.visual_origin
    if alive is not None:
        # In training a row's dropped tokens may stay as filling: invalid, so that no other token attends to them.
        valid = valid.scatter(1, slot, valid.gather(1, slot) & alive)
    return replace(
        state,
        visual=gather_tokens(state.visual, kept),
        visual_slot=slot,
        visual_origin=kept if origin is None else origin.gather(1, kept),
        prompt_valid=valid,
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
        mask = masks[group][:, None, None, :]  # no causality: everything cached comes before the new token
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
    # Whether a layer returns its states alone or in a tuple differs between families.
    return (output[0] if isinstance(output, tuple) else output), cache
