"""The model class with Optimum's habits against Hugging Face's own `generate`, on the ONNX engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

import toprl_export
from tests.support.onnx_bundle import OnnxBundle, staged_bundle
from tests.support.tiny_llava import QUESTIONS, VISUAL_TOKENS
from toprl_export.optimum import TOPRLModelForImageTextToText

NEW_TOKENS = 20


@pytest.fixture(scope="module")
def built() -> OnnxBundle:
    return staged_bundle()


@pytest.fixture(scope="module")
def model(built: OnnxBundle) -> Iterator[TOPRLModelForImageTextToText]:
    options = {"provider": "CPUExecutionProvider", "threads": 1, "budget_kept": VISUAL_TOKENS}
    with TOPRLModelForImageTextToText.from_pretrained(built.bundle.dir, **options) as loaded:
        yield loaded


def picture(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def inputs(built: OnnxBundle) -> Any:
    """Three prompts of different lengths, each with a picture, by the processor that the bundle carries."""
    processor = AutoProcessor.from_pretrained(built.bundle.dir / "processor", backend="pil")
    messages = [
        [{"role": "user", "content": [{"type": "image", "image": picture(index)}, {"type": "text", "text": question}]}]
        for index, question in enumerate(QUESTIONS)
    ]
    made = processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    assert made["attention_mask"].min() == 0, "rows must be padded for this test to see anything"
    return made


def hugging_face(built: OnnxBundle, inputs: Any, **options: Any) -> torch.Tensor:
    return built.adapter.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, **options)


def test_unpruned_it_gives_hugging_faces_own_tokens(built: OnnxBundle, model, inputs):
    expected = hugging_face(built, inputs)
    assert torch.equal(model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False), expected)
    own = built.adapter.model.generation_config
    assert torch.equal(model.generate(**inputs, max_new_tokens=NEW_TOKENS, generation_config=own), expected)
    others = dict(inputs) | {"pixel_values": inputs["pixel_values"].flip(0)}  # or pictures would not matter
    assert not torch.equal(model.generate(**others, max_new_tokens=NEW_TOKENS), expected)


@pytest.mark.parametrize("pad", [None, 77])
def test_rows_that_end_early_look_as_hugging_faces_do(built: OnnxBundle, model, inputs, pad: int | None):
    """End tokens are chosen from the answers, so that one row ends soon, one by another token, one never."""
    length = inputs["input_ids"].shape[1]
    free = hugging_face(built, inputs)[:, length:].tolist()
    spared = set(free[2])
    early, late = (next(token for token in free[row][row * 3 :] if token not in spared) for row in (0, 1))
    options = {"eos_token_id": [early, late]} | ({} if pad is None else {"pad_token_id": pad})
    expected = hugging_face(built, inputs, **options)
    assert expected.shape[1] == length + NEW_TOKENS and (expected[:2, -1] == (pad or 0)).all()
    assert torch.equal(model.generate(**inputs, max_new_tokens=NEW_TOKENS, **options), expected)
    alone = model.generate(**{name: value[:2] for name, value in inputs.items()}, max_new_tokens=NEW_TOKENS, **options)
    assert alone.shape[1] < expected.shape[1] and torch.equal(alone, expected[:2, : alone.shape[1]])


@pytest.mark.parametrize(("task", "budget_kept"), [("mini-exist", 12), ("mini-read", 12), ("mini-read", 6)])
def test_pruned_it_gives_the_loaded_bundles_tokens(built: OnnxBundle, model, inputs, task: str, budget_kept: int):
    with toprl_export.load(built.bundle.dir, threads=1, provider="cpu") as loaded:
        pictures = [picture(index) for index in range(len(QUESTIONS))]
        expected = loaded.generate(pictures, list(QUESTIONS), task, budget_kept, NEW_TOKENS)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    output = model.generate(**arrays, max_new_tokens=NEW_TOKENS, task=task, budget_kept=budget_kept)
    answers = output[:, arrays["input_ids"].shape[1] :].tolist()
    for answer, ids, end in zip(answers, expected.token_ids, expected.ended_by, strict=True):
        assert answer[: len(ids)] == list(ids) and answer[len(ids) : len(ids) + 1] == ([] if end is None else [end])
    assert not np.array_equal(output, hugging_face(built, inputs).numpy())


def test_the_configuration_is_the_checkpoints(built: OnnxBundle, model):
    assert type(model.config) is type(built.adapter.model.config)
    assert model.config.to_dict() | {"_name_or_path": ""} == built.adapter.model.config.to_dict()
