"""Ways of pruning: nothing kept goes through the one walk as a recomputation without cache has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.agents import save_tiny_agent
from tests.support.tiny_llava import VISUAL_TOKENS, tiny_adapter, tiny_pixels, tiny_tokens
from toprl_export.agent import load_agent
from toprl_export.analyze.ways import ByAgent, OneCut, Unpruned
from toprl_export.errors import UserError
from toprl_export.evaluation.cells import digest
from toprl_export.models.llava import LlavaAdapter
from toprl_export.models.reference import ReferenceRunner

STEPS = 4


def next_token(adapter: LlavaAdapter, ids: torch.Tensor, image: torch.Tensor, cut: int) -> int:
    """Hugging Face's layers over a whole row of tokens, the visual ones taken out before layer ``cut``."""
    network = adapter.model.model
    visual = ids == network.config.image_token_id
    hidden = network.language_model.embed_tokens(ids)
    hidden[visual] = image
    hidden, places = hidden[None], torch.arange(len(ids))[None]
    cos, sin = network.language_model.rotary_emb(hidden, places)
    for index, layer in enumerate(network.language_model.layers):
        if index == cut:
            hidden, cos, sin = (one[:, ~visual] for one in (hidden, cos, sin))
        seen = torch.full((hidden.shape[1],) * 2, float("-inf")).triu(1)
        hidden = layer(hidden, attention_mask=seen[None, None], position_embeddings=(cos, sin))
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    return int(adapter.model.lm_head(network.language_model.norm(hidden))[0, -1].argmax())


@torch.no_grad()
def recomputed(adapter: LlavaAdapter, cut: int) -> list[list[int]]:
    """Greedy answers of both rows, each alone, unpadded and without a cache; the end token does not end them."""
    tokens, images = tiny_tokens(adapter), adapter.encode_image(tiny_pixels())
    rows = []
    for row, image in enumerate(images):
        ids = torch.from_numpy(tokens.input_ids[row][tokens.attention_mask[row] == 1])
        start = len(ids)
        for _ in range(STEPS):
            ids = torch.cat([ids, torch.tensor([next_token(adapter, ids, image, cut)])])
        rows.append(ids[start:].tolist())
    return rows


def answered(adapter: LlavaAdapter, way: OneCut | Unpruned) -> list[list[int]]:
    runner = ReferenceRunner(adapter)
    visual = runner.encode_image(tiny_pixels().numpy())
    found = runner.generate(tiny_tokens(adapter), visual, STEPS, way.pruning(adapter))
    return found.tokens


def same_until_end(adapter: LlavaAdapter, rows: list[list[int]], expected: list[list[int]]) -> bool:
    """Whether the answers are as expected up to the end token."""
    (end,) = adapter.end_tokens
    return rows == [row[: row.index(end)] if end in row else row for row in expected]


@pytest.mark.parametrize("layer", range(4))
def test_nothing_kept_answers_like_a_row_without_its_visual_tokens(adapter: LlavaAdapter, layer: int):
    rows = answered(adapter, OneCut(layer, kept=0))
    assert same_until_end(adapter, rows, recomputed(adapter, layer))
    assert not same_until_end(adapter, rows, recomputed(adapter, layer + 1))


def test_nothing_kept_leaves_only_text_in_the_deeper_caches(adapter: LlavaAdapter):
    runner, tokens = ReferenceRunner(adapter), tiny_tokens(adapter)
    prefill = runner.prefill(tokens, runner.encode_image(tiny_pixels().numpy()), OneCut(2, 0).pruning(adapter))
    text = tokens.input_ids.shape[1] - VISUAL_TOKENS
    assert [keys.shape[2] for keys in prefill.keys] == [text + VISUAL_TOKENS] * 2 + [text] * 2
    assert prefill.kept[0].shape == (2, 0)


def test_one_cut_keeps_the_tokens_that_the_last_question_token_attends_to(adapter: LlavaAdapter):
    runner = ReferenceRunner(adapter)
    visual = runner.encode_image(tiny_pixels().numpy())
    tokens = tiny_tokens(adapter)
    (kept,) = runner.prefill(tokens, visual, OneCut(1, 5).pruning(adapter)).kept
    attended = attention_of_last(visual)
    assert kept.tolist() == [sorted(row.topk(5).indices.tolist()) for row in attended]
    assert kept.tolist() != [sorted((-row).topk(5).indices.tolist()) for row in attended]


@torch.no_grad()
def attention_of_last(visual: torch.Tensor) -> torch.Tensor:
    """Hugging Face's attention of the last token on the visual ones in the first layer, ``[b, n]``."""
    adapter = tiny_adapter()
    tokens, network = tiny_tokens(adapter), adapter.model
    ids = torch.from_numpy(tokens.input_ids)
    network.set_attn_implementation("eager")
    embeds = network.model.language_model.embed_tokens(ids)
    embeds[ids == network.config.image_token_id] = visual.flatten(0, 1)
    found = network.model.language_model(
        inputs_embeds=embeds,
        attention_mask=torch.from_numpy(tokens.attention_mask),
        position_ids=torch.from_numpy(tokens.position_ids),
        output_attentions=True,
    )
    last = found.attentions[0][:, :, -1].mean(1)  # [b, s]
    return last.gather(1, torch.from_numpy(tokens.visual_index))


def test_ways_that_answer_differently_have_different_identities(adapter: LlavaAdapter):
    ways = [Unpruned(), OneCut(0, 0), OneCut(1, 0), OneCut(0, 3), ByAgent(Path("a"), "f", (3, 2))]
    ways += [ByAgent(Path("a"), "f", (4, 2)), ByAgent(Path("a"), "g", (3, 2))]
    assert len({digest(way) for way in ways}) == len(ways)
    assert digest(ByAgent(Path("b"), "f", (3, 2))) == digest(ways[4])


def test_an_agent_that_was_replaced_is_noticed(adapter: LlavaAdapter, tmp_path: Path):
    directory = save_tiny_agent(tmp_path / "agent", adapter)
    agent = load_agent(directory)
    pruning = ByAgent(directory, agent.fingerprint, (9, 4)).pruning(adapter)
    assert (pruning.stage_layers, pruning.keep_counts) == ((0, 2), (9, 4))
    with pytest.raises(UserError, match="has changed meanwhile"):
        ByAgent(directory, "0" * 64, (9, 4)).pruning(adapter)
