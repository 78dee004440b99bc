"""Checkpoints of every family: what Hugging Face's own processor, forward and generate make of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.family_checkpoints import FAMILIES
from toprl_export.cli.main import main
from toprl_export.errors import UserError
from toprl_export.models import agreement
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.load import load_model
from toprl_export.models.reference import ReferenceRunner, until_end

QUESTIONS = ("what colour is the 7?", "is there a star in the image? how many circles are there?")
SIZES = ((90, 40), (56, 70), (40, 40), (33, 121))
"""Width and height of pictures with different numbers of visual tokens."""
NEW_TOKENS = 20


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(agreement, "_cache", lambda: None)


@pytest.fixture(scope="module", params=FAMILIES)
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LVLMAdapter:
    directory = FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    return load_model(str(directory))


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def own_answer(adapter: LVLMAdapter, images: Sequence[Image.Image], question: str) -> tuple[torch.Tensor, list[int]]:
    """Hugging Face's logits of the last position and greedy tokens for one prompt, from its own processor's inputs."""
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    inputs = adapter.frontend.processor.apply_chat_template(
        [{"role": "user", "content": [*content, {"type": "text", "text": question}]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        logits = adapter.model(**inputs).logits[:, -1]
        made = adapter.model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
    return logits, until_end(made[0, inputs["input_ids"].shape[1] :].tolist(), adapter.end_tokens)


def our_answers(
    adapter: LVLMAdapter, images: Sequence[Image.Image], shown: Sequence[Sequence[int]], questions: Sequence[str]
) -> tuple[torch.Tensor, list[list[int]]]:
    runner = ReferenceRunner(adapter)
    pictures = adapter.frontend.pictures(images)
    tokens = adapter.frontend.tokens(questions, pictures=pictures, shown=shown)
    answers = runner.generate(tokens, runner.encode(pictures), NEW_TOKENS)
    return answers.prefill.logits, answers.tokens


@pytest.mark.parametrize("sizes", [SIZES[:2], SIZES[2:]])
def test_a_batch_of_two_is_answered_as_hugging_face_answers_each(
    adapter: LVLMAdapter, sizes: Sequence[tuple[int, int]]
):
    images = [picture(size, seed) for seed, size in enumerate(sizes)]
    logits, tokens = our_answers(adapter, images, [[0], [1]], QUESTIONS)
    for row, (image, question) in enumerate(zip(images, QUESTIONS, strict=True)):
        own_logits, own_tokens = own_answer(adapter, [image], question)
        assert float((logits[row] - own_logits[0]).abs().max()) <= 1e-4 * float(own_logits.abs().max())
        assert tokens[row] == own_tokens


def test_two_pictures_in_one_prompt_one_in_another_and_none_in_a_third(adapter: LVLMAdapter):
    images = [picture(size, seed) for seed, size in enumerate(SIZES[:3])]
    questions = (*QUESTIONS, "what is it?")
    shown = [[0, 1], [2], []]
    logits, tokens = our_answers(adapter, images, shown, questions)
    for row, (numbers, question) in enumerate(zip(shown, questions, strict=True)):
        own_logits, own_tokens = own_answer(adapter, [images[number] for number in numbers], question)
        assert float((logits[row] - own_logits[0]).abs().max()) <= 1e-4 * float(own_logits.abs().max())
        assert tokens[row] == own_tokens


def test_numbers_of_visual_tokens_differ(adapter: LVLMAdapter):
    counts = {len(each.rows) for each in adapter.frontend.pictures([picture(size) for size in SIZES]).each}
    assert len(counts) > 1


def test_pictures_in_another_order_have_other_answers(adapter: LVLMAdapter):
    """The negative control."""
    images = [picture(size, seed) for seed, size in enumerate(SIZES[:2])]
    there, back = (our_answers(adapter, images, [order], QUESTIONS[:1])[0] for order in ([0, 1], [1, 0]))
    assert float((there - back).abs().max()) > 1e-2 * float(there.abs().max())


def test_control_tokens_in_a_question_are_text(adapter: LVLMAdapter):
    pictures = adapter.frontend.pictures([picture(SIZES[0])])
    asked = f"what is {adapter.frontend.processor.image_token}?"
    tokens = adapter.frontend.tokens([asked], pictures=pictures)
    assert int((tokens.input_ids == adapter.frontend.image_token_id).sum()) == len(pictures.each[0].rows)


def test_what_is_not_there_yet_is_refused_by_name(adapter: LVLMAdapter, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(UserError, match=f"of the family {adapter.family}, whose pictures have different numbers"):
        _ = adapter.visual_tokens
    for command in (["train"], ["compare"]):
        assert main([*command, "--model", adapter.model_id, "--dry-run"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["models", "check", adapter.model_id]) == 0
