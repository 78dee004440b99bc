"""The walk against Hugging Face's own forward, and pruned runs against recomputation without a cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from tests.support.tiny_llava import VISUAL_TOKENS, tiny_adapter, tiny_pixels, tiny_tokens
from toprl_export.errors import UserError
from toprl_export.models import walk
from toprl_export.models.llava import LlavaAdapter
from toprl_export.models.reference import Pruning, ReferenceRunner, forced_decisions, to_tensors
from toprl_export.models.walk import NO_NEEDS, Decision, Prefill, TokenTensors, layer_groups, walk_decode, walk_prefill
from toprl_export.pruning.actor import Actor, ActorConfig
from toprl_export.pruning.baselines.attention import FastVScorer, PyramidDropScorer
from toprl_export.pruning.mask import neutralising_mask
from toprl_export.pruning.scorer import Scorer, ScorerNeeds, StageInputs, question_states
from toprl_export.pruning.select import select

STAGES = (0, 1, 3)
COUNTS = (12, 8, 5)
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=[2, 1], ids=["multi-head", "grouped-query"])
def adapter(request: pytest.FixtureRequest) -> LlavaAdapter:
    return tiny_adapter(kv_heads=request.param)


def batch_of(adapter: LlavaAdapter, batch: int = 3) -> tuple[TokenTensors, Tensor]:
    tokens = to_tensors(tiny_tokens(adapter, batch), adapter.device)
    with torch.no_grad():
        return tokens, adapter.encode_image(tiny_pixels(batch))


def some_actor(adapter: LlavaAdapter) -> Actor:
    torch.manual_seed(3)
    return Actor(ActorConfig(adapter.shape.hidden, 16, len(STAGES))).eval().requires_grad_(False)


def pruned(adapter: LlavaAdapter, tokens: TokenTensors, visual: Tensor) -> Prefill:
    pruning = Pruning(STAGES, COUNTS, some_actor(adapter))
    with torch.no_grad():
        return walk_prefill(adapter.decoder, tokens, visual, STAGES, pruning.decide)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_image_encoding_is_hugging_faces(adapter: LlavaAdapter) -> None:
    pixels = tiny_pixels(2)
    with torch.no_grad():
        stock = torch.stack(list(adapter.model.get_image_features(pixels).pooler_output))
        assert torch.equal(adapter.encode_image(pixels), stock)


def test_unpruned_prefill_is_hugging_faces_forward(adapter: LlavaAdapter) -> None:
    tokens, visual = batch_of(adapter)
    with torch.no_grad():
        ours = walk_prefill(adapter.decoder, tokens, visual, (), lambda _: pytest.fail("no stage was planned"))
        stock = adapter.model(
            input_ids=tokens.input_ids,
            pixel_values=tiny_pixels(3),
            attention_mask=tokens.attention_mask,
            position_ids=tokens.position_ids,
        ).logits[:, -1]
    assert relative_error(ours.logits, stock) < TOLERANCE


def test_keeping_all_tokens_at_every_stage_changes_nothing(adapter: LlavaAdapter) -> None:
    tokens, visual = batch_of(adapter)
    everything = Pruning(STAGES, (VISUAL_TOKENS,) * 3, some_actor(adapter))
    with torch.no_grad():
        kept_all = walk_prefill(adapter.decoder, tokens, visual, STAGES, everything.decide)
        unpruned = walk_prefill(adapter.decoder, tokens, visual, (), everything.decide)
    assert relative_error(kept_all.logits, unpruned.logits) < TOLERANCE
    assert all(torch.equal(kept, torch.arange(VISUAL_TOKENS).expand(3, -1)) for kept in kept_all.kept)


def test_shapes_follow_the_keep_counts(adapter: LlavaAdapter) -> None:
    tokens, visual = batch_of(adapter)
    result = pruned(adapter, tokens, visual)
    text = tokens.text_index.shape[1]
    assert [keys.shape[2] - text for keys in result.keys] == [12, 8, 8, 5]
    assert [mask.shape[1] - text for mask in result.masks] == [12, 8, 5]
    assert [kept.shape for kept in result.kept] == [(3, 12), (3, 8), (3, 5)]
    for earlier, later in zip(result.kept, result.kept[1:], strict=False):
        assert all(set(b.tolist()) <= set(a.tolist()) for a, b in zip(earlier, later, strict=True))


def masked_form(adapter: LlavaAdapter, tokens: TokenTensors, visual: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
    """Eq. 6-7 written out over the full sequence: nothing is gathered, dropped tokens are only neutralised."""
    decoder = adapter.decoder
    hidden = decoder.embed(tokens.input_ids)
    hidden = hidden.scatter(1, tokens.visual_index[..., None].expand(-1, -1, hidden.shape[-1]), visual)
    rotary = decoder.rotary(hidden, tokens.position_ids)
    alive = tokens.attention_mask.bool()
    causal = torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool).tril().expand(len(hidden), -1, -1)
    for index in range(len(decoder)):
        if index in STAGES:
            mask = torch.zeros(len(hidden), VISUAL_TOKENS, dtype=torch.bool)
            mask.scatter_(1, kept[STAGES.index(index)], True)
            alive = alive.scatter(1, tokens.visual_index, mask)
        allowed = neutralising_mask(causal, alive)[:, None]
        layer = decoder.layer(index)
        hidden = layer(hidden, attention_mask=allowed, position_embeddings=rotary)
    return decoder.head(decoder.norm(hidden[:, -1]))


def test_gathered_and_masked_forms_agree(adapter: LlavaAdapter) -> None:
    tokens, visual = batch_of(adapter)
    result = pruned(adapter, tokens, visual)
    with torch.no_grad():
        masked = masked_form(adapter, tokens, visual, result.kept)
        other = tuple(kept.roll(1, dims=0) for kept in result.kept)
        assert relative_error(result.logits, masked) < TOLERANCE
        assert relative_error(result.logits, masked_form(adapter, tokens, visual, other)) > 100 * TOLERANCE


def test_rows_that_keep_different_numbers_agree_with_the_masked_form(adapter: LlavaAdapter) -> None:
    """What rollouts do: rows padded to the largest count, the surplus marked dead."""
    tokens, visual = batch_of(adapter)
    counts = torch.tensor([[9, 6, 3], [12, 2, 1], [4, 4, 4]])

    def decide(inputs: StageInputs) -> Decision:
        assert inputs.alive is not None
        order = inputs.visual.float().sum(-1).masked_fill(~inputs.alive, -torch.inf)
        wanted = counts[:, inputs.stage]
        rank = order.argsort(dim=1, descending=True).argsort(dim=1)
        action = rank < wanted[:, None]
        kept = select(action.float(), int(wanted.max()))
        return Decision(kept, action.gather(1, kept))

    with torch.no_grad():
        batched = walk_prefill(adapter.decoder, tokens, visual, STAGES, decide)
        for row in range(3):
            alone = replace(
                tokens, **{name: value[row : row + 1] for name, value in vars(tokens).items() if value is not None}
            )
            single = [counts[row, stage].item() for stage in range(3)]

            def decide_one(inputs: StageInputs, single: list[int] = single) -> Decision:
                return Decision(select(inputs.visual.float().sum(-1), single[inputs.stage]))

            expected = walk_prefill(adapter.decoder, alone, visual[row : row + 1], STAGES, decide_one)
            assert relative_error(batched.logits[row], expected.logits[0]) < TOLERANCE


def test_decoding_over_ragged_caches_equals_recomputation(adapter: LlavaAdapter) -> None:
    """Twelve tokens, each against a fresh prefill of the longer prompt that keeps the same tokens."""
    tokens, visual = batch_of(adapter, 2)
    result = pruned(adapter, tokens, visual)
    groups = layer_groups(STAGES, len(adapter.decoder))
    keys, values, masks, logits = result.keys, result.values, result.masks, result.logits
    longer = tokens
    with torch.no_grad():
        for _ in range(12):
            chosen = logits.argmax(-1, keepdim=True)
            longer = _appended(longer, chosen)
            masks = tuple(torch.cat([mask, torch.ones(2, 1, dtype=torch.bool)], dim=1) for mask in masks)
            position = longer.position_ids[:, -1:]
            logits, keys, values = walk_decode(adapter.decoder, chosen, position, keys, values, masks, groups)
            fresh = walk_prefill(adapter.decoder, longer, visual, STAGES, forced_decisions(result.kept))
            assert relative_error(logits, fresh.logits) < TOLERANCE
        shifted, _, _ = walk_decode(
            adapter.decoder, chosen, position - 20, result.keys, result.values, _grown(result), groups
        )
        right, _, _ = walk_decode(adapter.decoder, chosen, position, result.keys, result.values, _grown(result), groups)
    assert relative_error(shifted, right) > 100 * TOLERANCE


def _grown(result: Prefill) -> tuple[Tensor, ...]:
    return tuple(torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.bool)], dim=1) for mask in result.masks)


def _appended(tokens: TokenTensors, chosen: Tensor) -> TokenTensors:
    length = tokens.input_ids.shape[1]
    return TokenTensors(
        torch.cat([tokens.input_ids, chosen], dim=1),
        torch.cat([tokens.attention_mask, torch.ones_like(chosen)], dim=1),
        torch.cat([tokens.position_ids, tokens.position_ids[:, -1:] + 1], dim=1),
        tokens.visual_index,
        torch.cat([tokens.text_index, torch.full_like(chosen, length)], dim=1),
    )


def test_packed_questions_are_answered_as_if_alone(adapter: LlavaAdapter) -> None:
    """Two questions behind one image in one row, against two rows."""
    tokens, visual = batch_of(adapter, 1)
    prompt = tokens.input_ids
    start = int(tokens.visual_index[0, -1]) + 1
    tail = prompt[:, start:]
    other = tail.flip(1)
    positions = torch.arange(start, start + tail.shape[1])[None]
    packed = TokenTensors(
        input_ids=torch.cat([prompt, other], dim=1),
        attention_mask=torch.ones(1, prompt.shape[1] + other.shape[1], dtype=torch.int64),
        position_ids=torch.cat([tokens.position_ids, positions], dim=1),
        visual_index=tokens.visual_index,
        text_index=torch.cat([tokens.text_index, torch.arange(other.shape[1])[None] + prompt.shape[1]], dim=1),
        segments=torch.cat([torch.zeros(1, start), torch.full_like(tail, 1), torch.full_like(other, 2)], dim=1).long(),
    )
    alone = replace(tokens, input_ids=torch.cat([prompt[:, :start], other], dim=1))
    batched, first, second = (pruned(adapter, batch, visual) for batch in (packed, tokens, alone))
    at = batched.hidden.shape[1] - other.shape[1] - 1
    with torch.no_grad():
        assert relative_error(adapter.decoder.head(batched.hidden[:, at]), first.logits) < TOLERANCE
    assert relative_error(batched.logits, second.logits) < TOLERANCE


def eager_maps(adapter: LlavaAdapter, tokens: TokenTensors) -> list[Tensor]:
    """Per layer the attention of every token on the visual ones, mean over heads, ``[b, s, n]``; by Hugging Face."""
    adapter.model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = adapter.model(
            input_ids=tokens.input_ids,
            pixel_values=tiny_pixels(len(tokens.input_ids)),
            attention_mask=tokens.attention_mask,
            position_ids=tokens.position_ids,
            output_attentions=True,
        ).attentions
    adapter.model.set_attn_implementation("sdpa")
    columns = tokens.visual_index[:, None].expand(-1, tokens.input_ids.shape[1], -1)
    return [layer.mean(dim=1).gather(2, columns) for layer in maps]


def inputs_at(
    adapter: LlavaAdapter, tokens: TokenTensors, visual: Tensor, stage: int, needs: ScorerNeeds
) -> StageInputs:
    """What the scorer of the only stage is given."""
    seen: list[StageInputs] = []

    def decide(inputs: StageInputs) -> Decision:
        seen.append(inputs)
        return Decision(select(inputs.visual.float().sum(-1), 10))

    with torch.no_grad():
        walk_prefill(adapter.decoder, tokens, visual, (stage,), decide, needs)
    return seen[0]


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("scorer", [FastVScorer(), PyramidDropScorer()])
def test_attention_row_is_the_eager_models_last_row(adapter: LlavaAdapter, scorer: Scorer, stage: int) -> None:
    """FastV's scores come from the layer just run, PyramidDrop's from the one about to run."""
    tokens, visual = batch_of(adapter, 2)
    scores = scorer(inputs_at(adapter, tokens, visual, stage, scorer.needs))
    maps = eager_maps(adapter, tokens)
    before, after = maps[max(stage - 1, 0)][:, -1], maps[stage][:, -1]
    expected, other = (before, after) if isinstance(scorer, FastVScorer) else (after, before)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)
    assert stage == 0 or (scores - other).abs().max() > 1e-3


@pytest.mark.parametrize("scorer", [FastVScorer(), PyramidDropScorer()])
def test_a_later_stages_row_is_the_eager_models_over_the_tokens_left(adapter: LlavaAdapter, scorer: Scorer) -> None:
    """Tokens dropped before layer 0 are as if they had never been there, but for the positions of the others."""
    tokens, visual = batch_of(adapter, 2)
    seen: list[StageInputs] = []

    def decide(inputs: StageInputs) -> Decision:
        seen.append(inputs)
        return Decision(select(inputs.visual.float().sum(-1), (10, 4)[inputs.stage]))

    with torch.no_grad():
        walk_prefill(adapter.decoder, tokens, visual, (0, 2), decide, scorer.needs)
    left = tokens.visual_index.gather(1, seen[1].origin)  # [b, 10]
    stays = torch.ones_like(tokens.input_ids, dtype=torch.bool).scatter(1, tokens.visual_index, False)
    stays = stays.scatter(1, left, True)
    index = stays.nonzero()[:, 1].reshape(len(stays), -1)  # [b, s - 15]
    maps = eager_maps_of(adapter, tokens, visual, index)
    columns = torch.searchsorted(index, left)
    before, after = (maps[layer][:, -1].gather(1, columns) for layer in (1, 2))
    expected, other = (before, after) if isinstance(scorer, FastVScorer) else (after, before)
    torch.testing.assert_close(scorer(seen[1]), expected, atol=1e-5, rtol=1e-4)
    assert (expected - other).abs().max() > 1e-3
    renumbered = replace(tokens, position_ids=tokens.position_ids - (tokens.position_ids > 12).long())
    moved = eager_maps_of(adapter, renumbered, visual, index)
    assert (moved[1][:, -1].gather(1, columns) - before).abs().max() > 1e-3


def eager_maps_of(adapter: LlavaAdapter, tokens: TokenTensors, visual: Tensor, index: Tensor) -> list[Tensor]:
    """Hugging Face's attention maps, mean over heads ``[b, s', s']``, where only the tokens at ``index`` are there."""
    adapter.model.set_attn_implementation("eager")
    with torch.no_grad():
        embedded = adapter.model.get_input_embeddings()(tokens.input_ids)
        embedded = embedded.scatter(1, tokens.visual_index[..., None].expand_as(visual), visual)
        maps = adapter.model.model.language_model(
            inputs_embeds=embedded.gather(1, index[..., None].expand(-1, -1, embedded.shape[2])),
            attention_mask=tokens.attention_mask.gather(1, index),
            position_ids=tokens.position_ids.gather(1, index),
            output_attentions=True,
        ).attentions
    adapter.model.set_attn_implementation("sdpa")
    return [layer.mean(dim=1) for layer in maps]


@pytest.mark.parametrize("layer", ["previous", "next"])
@pytest.mark.parametrize("stage", [0, 2])
def test_rows_of_all_text_tokens_are_the_eager_models(
    adapter: LlavaAdapter, layer: Literal["previous", "next"], stage: int
) -> None:
    tokens, visual = batch_of(adapter)
    inputs = inputs_at(adapter, tokens, visual, stage, ScorerNeeds(attention="text", attention_layer=layer))
    assert inputs.attention is not None and inputs.question_mask is not None and inputs.text is None
    index = stage if layer == "next" else max(stage - 1, 0)
    rows = eager_maps(adapter, tokens)[index].gather(1, tokens.text_index[..., None].expand(-1, -1, VISUAL_TOKENS))
    # Padding attends to nothing, which is done in another way here; tokens before the image see none of it.
    torch.testing.assert_close(inputs.attention[inputs.question_mask], rows[inputs.question_mask], atol=1e-5, rtol=1e-4)
    unasked = ~inputs.question_mask & tokens.attention_mask.gather(1, tokens.text_index).bool()
    assert unasked.any() and not inputs.attention[unasked].any()


def test_the_question_is_what_stands_behind_the_image(adapter: LlavaAdapter) -> None:
    tokens, visual = batch_of(adapter)
    assert not tokens.attention_mask.all(), "some row must be padded"
    inputs = inputs_at(adapter, tokens, visual, 0, ScorerNeeds(text=True))
    assert inputs.text is not None and inputs.question_mask is not None
    for row, ids in enumerate(tokens.input_ids):
        end = int(tokens.visual_index[row, -1]) + 1
        assert inputs.question_mask[row].sum() == len(ids) - end
        torch.testing.assert_close(inputs.text[row, inputs.question_mask[row]], adapter.decoder.embed(ids[end:]))
    assert len(set(inputs.question_mask.sum(1).tolist())) > 1, "the questions must differ in length"


def test_the_answer_is_no_part_of_the_question(adapter: LlavaAdapter) -> None:
    """Training puts answers behind the prompt: whatever they are, the scorer must see the prompt alone."""
    tokens, visual = batch_of(adapter, 2)
    needs = ScorerNeeds(attention="last", text=True)
    asked_alone = inputs_at(adapter, tokens, visual, 2, needs)
    longer = _appended(_appended(tokens, torch.full((2, 1), 7)), torch.full((2, 1), 9))
    end = torch.full((2,), tokens.input_ids.shape[1] - 1)
    marked = inputs_at(adapter, replace(longer, question_end=end), visual, 2, needs)
    unmarked = inputs_at(adapter, longer, visual, 2, needs)
    assert (
        asked_alone.question_mask is not None and marked.question_mask is not None and asked_alone.attention is not None
    )
    assert marked.question_mask[:, :-2].equal(asked_alone.question_mask) and not marked.question_mask[:, -2:].any()
    for ours, alone in zip(question_states(marked), question_states(asked_alone), strict=True):
        torch.testing.assert_close(ours, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(marked.attention, asked_alone.attention, atol=1e-5, rtol=1e-4)
    assert unmarked.attention is not None and (unmarked.attention - asked_alone.attention).abs().max() > 1e-3


def test_generation_stops_at_the_end_token_and_batches(adapter: LlavaAdapter) -> None:
    runner = ReferenceRunner(adapter)
    tokens = tiny_tokens(adapter, 3)
    visual = runner.encode_image(tiny_pixels(3).numpy())
    pruning = Pruning(STAGES, COUNTS, some_actor(adapter))
    batched = runner.generate(tokens, visual, 6, pruning)
    stock = adapter.model.generate(
        input_ids=torch.from_numpy(tokens.input_ids),
        attention_mask=torch.from_numpy(tokens.attention_mask),
        pixel_values=tiny_pixels(3),
        max_new_tokens=6,
        do_sample=False,
    )
    unpruned = runner.generate(tokens, visual, 6)
    new = stock[:, tokens.input_ids.shape[1] :].tolist()
    end = adapter.end_tokens[0]
    assert unpruned.tokens == [row[: row.index(end)] if end in row else row for row in new]
    assert batched.tokens != unpruned.tokens


def test_replaying_a_dropped_token_is_refused(adapter: LlavaAdapter) -> None:
    tokens, visual = batch_of(adapter, 1)
    kept = (torch.tensor([[0, 1, 2]]), torch.tensor([[1, 7]]))
    with pytest.raises(UserError, match="an earlier stage dropped"):
        walk_prefill(adapter.decoder, tokens, visual, (0, 1), forced_decisions(kept))


def test_the_worked_example_of_the_index_spaces(adapter: LlavaAdapter) -> None:
    """The table at the top of walk.py: <pad> <s> v0 v1 v2 v3 what is it, of which v1 and v3 are kept, then v3."""
    visual_index, text_index = torch.tensor([[2, 3, 4, 5]]), torch.tensor([[0, 1, 6, 7, 8]])
    position_ids = torch.tensor([[0, 0, 1, 2, 3, 4, 5, 6, 7]])
    ids, mask = torch.ones(1, 9, dtype=torch.int64), torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1, 1]])
    tokens = TokenTensors(ids, mask, position_ids, visual_index, text_index)
    sequence = walk.embed_tokens(adapter.decoder, tokens, torch.zeros(1, 4, adapter.shape.hidden))
    assert sequence.prompt_slot.tolist() == [[2, 3, 4, 5, 0, 1, 6, 7, 8]]
    seen, norm = [], adapter.decoder.norm
    for kept in ([[1, 3]], [[1]]):
        decision = Decision(torch.tensor(kept))
        sequence = walk._prune(sequence, len(seen), lambda _, it=decision: it, walk._Seen(), NO_NEEDS, None, norm)
        seen.append((sequence.visual_origin.tolist(), sequence.prompt_slot.tolist()))
    assert seen == [([[1, 3]], [[3, 5, 0, 1, 6, 7, 8]]), ([[3]], [[5, 0, 1, 6, 7, 8]])]
    left = position_ids.gather(1, sequence.prompt_slot).tolist()
    assert left == [[4, 0, 0, 5, 6, 7]]
