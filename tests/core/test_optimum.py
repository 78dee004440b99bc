"""The model class with Optimum's habits, on the engine without graphs: what it takes, makes and refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, GenerationConfig

import toprl_export
from tests.support.fake_engine import END_ID, MAX_LENGTH, VISUAL_TOKENS, made_up_bundle
from toprl_export.errors import UserError
from toprl_export.optimum import TOPRLModelForImageTextToText
from toprl_export.registry import Registry

QUESTIONS = ("what colour is the 7?", "is there a star in the image?", "how many circles are there?")
LENGTH = 16


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fake = Registry("engine", {"fake": "tests.support.fake_engine:FakeEngine"})
    monkeypatch.setattr("toprl_export.engine.ENGINES", fake)
    return made_up_bundle(tmp_path / "bundle").dir


@pytest.fixture
def model(directory: Path) -> Iterator[TOPRLModelForImageTextToText]:
    with TOPRLModelForImageTextToText.from_pretrained(directory) as loaded:
        yield loaded


def picture(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def prepared(directory: Path, kind: str = "np", **options: Any) -> dict[str, Any]:
    """What Hugging Face's own processor makes of the questions, each with a picture of its own."""
    processor = AutoProcessor.from_pretrained(directory / "processor", backend="pil")
    for name, value in options.items():
        setattr(processor.tokenizer, name, value)
    messages = [
        [{"role": "user", "content": [{"type": "image", "image": picture(index)}, {"type": "text", "text": question}]}]
        for index, question in enumerate(QUESTIONS)
    ]
    return processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors=kind,
        processor_kwargs={"padding": True},
    )


def answers(output: Any, inputs: dict[str, Any]) -> list[list[int]]:
    """The new tokens of every row as far as its end token."""
    new = np.asarray(output)[:, inputs["input_ids"].shape[1] :].tolist()
    return [row[: row.index(END_ID)] if END_ID in row else row for row in new]


@pytest.mark.parametrize(("task", "budget_kept"), [(None, None), ("mini-count", 4), ("mini-exist", VISUAL_TOKENS)])
def test_it_answers_as_the_loaded_bundle_does(directory: Path, model, task: str | None, budget_kept: int | None):
    inputs = prepared(directory)
    assert inputs["attention_mask"].min() == 0, "rows must be of different lengths for this test to see anything"
    with toprl_export.load(directory) as loaded:
        pictures = [picture(index) for index in range(len(QUESTIONS))]
        expected = loaded.generate(pictures, list(QUESTIONS), task, budget_kept, LENGTH).token_ids
    chosen = TOPRLModelForImageTextToText.from_pretrained(directory, task=task, budget_kept=budget_kept)
    for output in (
        model.generate(**inputs, max_new_tokens=LENGTH, task=task, budget_kept=budget_kept),
        chosen.generate(**inputs, max_new_tokens=LENGTH),
    ):
        assert answers(output, inputs) == [list(ids) for ids in expected]
    if task is not None:  # another agent and budget must change something
        assert answers(model.generate(**inputs, max_new_tokens=LENGTH), inputs) != [list(ids) for ids in expected]


def test_the_prompt_stands_before_the_answer_and_pads_after_the_end_token(directory: Path, model):
    inputs = prepared(directory)
    output = model.generate(**inputs, max_new_tokens=LENGTH, pad_token_id=77)
    assert (output[:, : inputs["input_ids"].shape[1]] == inputs["input_ids"]).all()
    lengths = [len(ids) for ids in answers(output, inputs)]
    assert len(set(lengths)) > 1 and max(lengths) + 1 == output.shape[1] - inputs["input_ids"].shape[1]
    for row, length in zip(output[:, inputs["input_ids"].shape[1] :], lengths, strict=True):
        assert row[length] == END_ID and set(row[length + 1 :]) <= {77}


def test_tensors_give_a_tensor_and_arrays_an_array_of_the_same_tokens(directory: Path, model):
    arrays, tensors = prepared(directory), prepared(directory, "pt")
    of_arrays, of_tensors = model.generate(**arrays), model.generate(**tensors.to(model.device))
    assert isinstance(of_arrays, np.ndarray) and isinstance(of_tensors, torch.Tensor)
    assert of_arrays.dtype == np.int64 and of_tensors.dtype == torch.int64
    assert (of_arrays == of_tensors.numpy()).all()


def test_half_precision_pictures_and_short_integers_are_taken(directory: Path, model):
    inputs = prepared(directory, "pt")
    expected = model.generate(**inputs | {"pixel_values": inputs["pixel_values"].to(torch.bfloat16).float()})
    changed = {"pixel_values": inputs["pixel_values"].to(torch.bfloat16), "input_ids": inputs["input_ids"].int()}
    assert (model.generate(**inputs | changed) == expected).all()


def test_without_a_mask_pads_are_found_as_hugging_face_finds_them(directory: Path, model):
    inputs = prepared(directory)
    expected = model.generate(**inputs)
    without = {name: value for name, value in inputs.items() if name != "attention_mask"}
    assert (model.generate(**without) == expected).all()
    pad = int(inputs["input_ids"][inputs["attention_mask"] == 0][0])
    read_as_text = model.generate(**without, eos_token_id=[END_ID, pad], pad_token_id=pad)
    assert read_as_text.shape != expected.shape or not (read_as_text == expected).all()


def test_lengths_and_end_tokens_mean_what_they_mean_to_hugging_face(directory: Path, model):
    inputs = prepared(directory)
    length = inputs["input_ids"].shape[1]
    long = model.generate(**inputs, max_new_tokens=LENGTH)
    assert model.generate(**inputs, max_length=length + 3).shape[1] == length + 3
    assert model.generate(**inputs, max_length=length + 3, max_new_tokens=2).shape[1] == length + 2
    config = GenerationConfig(max_new_tokens=4, do_sample=False, num_beams=1, bos_token_id=1)
    assert model.generate(**inputs, generation_config=config).shape[1] == length + 4
    assert model.generate(**inputs, generation_config=config, max_new_tokens=2).shape[1] == length + 2
    first = int(long[0, length])
    ended = model.generate(**inputs, max_new_tokens=LENGTH, eos_token_id=first)
    assert ended[0, length] == first and set(ended[0, length + 1 :]) == {0}


def test_options_that_leave_the_most_likely_token_change_nothing(directory: Path, model):
    inputs = prepared(directory)
    greedy = {"do_sample": False, "num_beams": 1, "temperature": 1.0, "top_p": 1.0, "use_cache": True, "streamer": None}
    assert (model.generate(**inputs, **greedy) == model.generate(**inputs)).all()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"do_sample": True}, "do_sample=True cannot be honoured"),
        ({"num_beams": 4}, "num_beams=4 cannot be honoured"),
        ({"temperature": 0.7}, "leave temperature out"),
        ({"repetition_penalty": 1.05}, "repetition_penalty=1.05"),
        ({"num_return_sequences": 2}, "num_return_sequences=2"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate=True"),
        ({"streamer": object()}, "streamer=<object"),
        ({"image_grid_thw": np.array([[1, 4, 4]])}, r"image_grid_thw=array.* one picture a prompt"),
        ({"generation_config": GenerationConfig(do_sample=True, top_k=5)}, "do_sample=True cannot be honoured"),
        ({"generation_config": "greedy"}, "generation_config is 'greedy', expected a GenerationConfig"),
        ({"max_new_tokens": 0}, "expected at least 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5, expected a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"max_new_tokens": MAX_LENGTH}, "leave no room"),
        ({"max_new_tokens": MAX_LENGTH - VISUAL_TOKENS - 2}, "but at most .* fit with"),
        ({"max_length": 5}, "max_length is 5, but the prompt has 29 tokens already"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"pad_token_id": 0.5}, "pad_token_id is 0.5"),
        ({"task": "nothing"}, "unknown task in .* 'nothing'"),
        ({"task": 3}, "task is 3, expected a text"),
        ({"budget_kept": 5}, "has no budget of 5 kept tokens"),
        ({"budget_kept": "8"}, "budget_kept is '8'"),
        ({"pixel_values": None}, r"pixel_values is missing, expected \[b, 3, 8, 8\]"),
        ({"input_ids": None}, "input_ids is missing"),
        ({"input_ids": [[1, 2], [3]]}, "input_ids is of the type list.*return_tensors='pt' or 'np'"),
        ({"input_ids": np.zeros((3, 20))}, "input_ids is float64"),
        ({"input_ids": np.zeros(20, np.int64)}, r"expected integers \[b, s\]"),
        ({"input_ids": np.zeros((0, 20), np.int64)}, r"int64 \[0, 20\]"),
        (
            {"input_ids": np.zeros((3, 20), np.int64), "attention_mask": np.ones((3, 20), np.int64)},
            "has 0 image tokens",
        ),
        ({"pixel_values": np.zeros((3, 3, 16, 16), np.float32)}, r"pixel_values are \[3, 3, 16, 16\].*own processor"),
        ({"pixel_values": np.zeros((3, 1, 3, 8, 8), np.float32)}, r"float32 \[3, 1, 3, 8, 8\]"),
        ({"pixel_values": np.zeros((3, 3, 8, 8), np.uint8)}, "uint8 .* expected floats"),
        ({"pixel_values": np.zeros((2, 3, 8, 8), np.float32)}, "2 images and 3 prompts do not pair"),
        ({"attention_mask": np.ones((3, 4), np.int64)}, r"attention_mask is \[3, 4\]"),
        ({"attention_mask": np.ones(3, np.int64)}, "attention_mask is int64"),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_one_line(directory: Path, model, changes, expected: str):
    with pytest.raises(UserError, match=expected) as caught:
        model.generate(**{**prepared(directory), **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("masked", [True, False])
def test_prompts_padded_on_the_right_are_refused(directory: Path, model, masked: bool):
    inputs = dict(prepared(directory, padding_side="right"))
    if not masked:
        del inputs["attention_mask"]
    with pytest.raises(UserError, match="pad them on the left"):
        model.generate(**inputs)


def test_a_prompt_with_two_pictures_is_refused(directory: Path, model):
    inputs = dict(prepared(directory))
    image = np.full((3, VISUAL_TOKENS), model.loaded.frontend.image_token_id)
    inputs["input_ids"] = np.concatenate([inputs["input_ids"], image], axis=1)
    inputs["attention_mask"] = np.concatenate([inputs["attention_mask"], np.ones_like(image)], axis=1)
    with pytest.raises(UserError, match="row 0 of input_ids has 32 image tokens, expected 16, those of one picture"):
        model.generate(**inputs)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"task": "nothing"}, "unknown task in .* 'nothing'"),
        ({"budget_kept": 5}, "has no budget of 5 kept tokens"),
        ({"budget_kept": 4.0}, "from_pretrained: budget_kept is 4.0"),
        ({"threads": 10_000}, "threads is 10000"),
    ],
)
def test_what_a_bundle_lacks_is_refused_when_it_is_loaded(directory: Path, options, expected: str):
    with pytest.raises(UserError, match=expected):
        TOPRLModelForImageTextToText.from_pretrained(directory, **options)


def test_a_hub_id_or_a_checkpoint_is_no_bundle(directory: Path):
    with pytest.raises(UserError, match=r"llava-hf/llava-1\.5-7b-hf is not a directory; expected a bundle"):
        TOPRLModelForImageTextToText.from_pretrained("llava-hf/llava-1.5-7b-hf")
    with pytest.raises(UserError, match="expected a bundle that `toprl-export build` wrote"):
        TOPRLModelForImageTextToText.from_pretrained(directory / "processor")


def test_a_closed_model_says_so(directory: Path):
    with TOPRLModelForImageTextToText.from_pretrained(directory) as model:
        assert model.can_generate() and model.device == torch.device("cpu")
    with pytest.raises(UserError, match="was closed: load it again"):
        model.generate(**prepared(directory))


def test_it_needs_neither_optimum_nor_torch():
    code = "import sys, toprl_export.optimum; print({'optimum', 'torch', 'transformers'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
