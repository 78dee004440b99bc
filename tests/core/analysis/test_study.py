"""A study: which questions are answered correctly under each pruning method, each answered once.

That nothing is kept goes through the one walk as a recomputation without a cache has it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.agents import save_tiny_agent
from tests.support.tiny_llava import VISUAL_TOKENS, tiny_adapter, tiny_pixels, tiny_tokens
from toprl_export.agent import load_agent
from toprl_export.analysis import study as study_module
from toprl_export.analysis.study import ByAgent, OneCut, OpenAnswerer, Scope, Study, Unpruned
from toprl_export.errors import MissingExtraError, UserError
from toprl_export.evaluation.cells import digest
from toprl_export.models.llava import LlavaAdapter
from toprl_export.models.reference import ReferenceRunner

STEPS = 4


def test_the_unpruned_model_is_right_where_the_task_echoes_it(open_study: Callable[..., Study]):
    full = open_study().unpruned()
    assert {name: right.tolist() for name, right in full.items()} == {
        "echo-look": [1.0] * 6,
        "echo-think": [0.0, *[1.0] * 5],
    }


def test_answers_are_shared_by_all_analyses_of_a_directory(
    open_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
):
    study = open_study("echo-think")
    wanted = [(task, method) for task in study.tasks for method in (Unpruned(), OneCut(1, 0))]
    first = study.correctness(wanted, "first")
    monkeypatch.setattr(study_module, "answer_samples", None)
    again = open_study("echo-think").correctness(wanted[::-1], "again")
    assert [one.tolist() for one in again[::-1]] == [one.tolist() for one in first]
    with pytest.raises(TypeError):
        study.correctness([(study.tasks[0], OneCut(2, 0))], "another method")


@pytest.mark.parametrize("changed", [{"limit": 5}, {"seed": 1}])
def test_other_questions_are_other_cells(
    open_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch, changed: dict[str, int]
):
    open_study("echo-look").unpruned()
    monkeypatch.setattr(study_module, "answer_samples", None)
    with pytest.raises(TypeError):
        open_study("echo-look", **changed).unpruned()


def test_other_processes_refuse_a_model_that_changed(open_study: Callable[..., Study], adapter: LlavaAdapter):
    with pytest.raises(UserError, match="the files of model mini changed while the command ran"):
        OpenAnswerer("mini", "cpu", adapter.answering_fingerprint)()


def test_a_task_without_right_answers_is_one_line(open_study: Callable[..., Study]):
    with pytest.raises(UserError, match="none of 6 questions of echo-never correctly"):
        open_study("echo-look", "echo-never").unpruned()


def test_a_named_task_needs_its_data(open_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toprl_export.tasks.task.find_spec", lambda name: None)
    monkeypatch.setitem(study_module.TASKS.get("echo-look").__dict__, "module", "easy_vqa")
    with pytest.raises(MissingExtraError, match="easy_vqa"):
        open_study("echo-look")


@pytest.mark.parametrize(
    ("name", "expected"), [("limit", "limit is 0, expected at least 1"), ("jobs", "jobs is 0, expected .* from 1 to ")]
)
def test_numbers_below_one_are_refused(tmp_path: Path, name: str, expected: str):
    with pytest.raises(UserError, match=expected):
        Scope(tmp_path, **{name: 0})


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


def answered(adapter: LlavaAdapter, method: OneCut | Unpruned) -> list[list[int]]:
    runner = ReferenceRunner(adapter)
    visual = runner.encode_image(tiny_pixels().numpy())
    found = runner.generate(tiny_tokens(adapter), visual, STEPS, method.pruning(adapter))
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


def test_methods_that_answer_differently_have_different_identities(adapter: LlavaAdapter):
    methods = [Unpruned(), OneCut(0, 0), OneCut(1, 0), OneCut(0, 3), ByAgent(Path("a"), "f", (3, 2))]
    methods += [ByAgent(Path("a"), "f", (4, 2)), ByAgent(Path("a"), "g", (3, 2))]
    assert len({digest(method) for method in methods}) == len(methods)
    assert digest(ByAgent(Path("b"), "f", (3, 2))) == digest(methods[4])


def test_an_agent_that_was_replaced_is_noticed(adapter: LlavaAdapter, tmp_path: Path):
    directory = save_tiny_agent(tmp_path / "agent", adapter)
    agent = load_agent(directory)
    pruning = ByAgent(directory, agent.fingerprint, (9, 4)).pruning(adapter)
    assert (pruning.stage_layers, pruning.keep_counts) == ((0, 2), (9, 4))
    with pytest.raises(UserError, match="changed while the command ran"):
        ByAgent(directory, "0" * 64, (9, 4)).pruning(adapter)
