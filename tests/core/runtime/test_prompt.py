"""Prompts: the ids that training used, left padding, and every prompt that is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from toprl_export.errors import UserError
from toprl_export.fields import read_fields, to_json
from toprl_export.models.mini.architecture import BEGIN, IMAGE, PAD, WORDS, build_tokenizer
from toprl_export.runtime.prompt import PromptFormat

TOKENIZER = build_tokenizer()
MINI = PromptFormat(f"{BEGIN}user:", "{question} assistant:", image_token=IMAGE, pad_token=PAD)


def test_mini_ids_are_those_of_training():
    question = "what colour is the 7?"
    tokens = MINI.tokenize(TOKENIZER, [question], visual_tokens=5)

    def encode(text: str) -> list[int]:
        return TOKENIZER.encode(text, add_special_tokens=False).ids

    image = TOKENIZER.token_to_id(IMAGE)
    assert tokens.input_ids[0].tolist() == encode("<s>user:") + [image] * 5 + encode(f"{question} assistant:")
    assert encode("<s>user:") == [TOKENIZER.token_to_id(token) for token in (BEGIN, "user", ":")]


def test_a_padded_batch_by_hand():
    tokens = MINI.tokenize(TOKENIZER, ["the 7 ?", "?"], visual_tokens=2)
    names = [[TOKENIZER.id_to_token(i) for i in row] for row in tokens.input_ids]
    assert names == [
        [BEGIN, "user", ":", IMAGE, IMAGE, "the", "7", "?", "assistant", ":"],
        [PAD, PAD, BEGIN, "user", ":", IMAGE, IMAGE, "?", "assistant", ":"],
    ]
    assert tokens.attention_mask.tolist() == [[1] * 10, [0, 0, *[1] * 8]]
    assert tokens.position_ids.tolist() == [list(range(10)), [0, 0, *range(8)]]
    assert tokens.visual_index.tolist() == [[3, 4], [5, 6]]
    assert tokens.text_index.tolist() == [[0, 1, 2, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 7, 8, 9]]
    assert tokens.next_position.tolist() == [10, 8]
    assert {array.dtype for array in vars(tokens).values()} == {np.dtype(np.int64)}


@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join), min_size=1, max_size=4))
def test_padding_changes_no_row(prompts: list[str]):
    batch = MINI.tokenize(TOKENIZER, prompts, visual_tokens=3)
    for row, prompt in enumerate(prompts):
        alone = MINI.tokenize(TOKENIZER, [prompt], visual_tokens=3)
        real = batch.attention_mask[row].astype(bool)
        assert batch.input_ids[row, real].tolist() == alone.input_ids[0].tolist()
        assert batch.position_ids[row, real].tolist() == alone.position_ids[0].tolist()
        places = np.sort(np.concatenate([batch.visual_index[row], batch.text_index[row]]))
        assert places.tolist() == list(range(batch.input_ids.shape[1]))


def test_words_may_join_across_the_prompt_but_not_across_the_image():
    """A text is encoded whole: a byte-level tokenizer joins the question with what stands before it."""
    vocabulary = {token: index for index, token in enumerate(["<image>", "<pad>", "a", "b", "Ġ", "Ġb"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<image>", "<pad>"])
    tokens = PromptFormat("a", " {question}", "<image>", "<pad>").tokenize(tokenizer, ["b"], visual_tokens=1)
    assert [tokenizer.id_to_token(i) for i in tokens.input_ids[0]] == ["a", "<image>", "Ġb"]


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([], "no prompt was given"),
        ([""], "a prompt is empty"),
        (["is it red?", " \n"], "a prompt is empty"),
        (["is <image> red?"], "contains the image token <image>"),
        (["red " * 90], "has 102 tokens, 7 of them visual, but at most 50 fit"),
    ],
)
def test_prompts_that_cannot_be_asked(prompts: list[str], expected: str):
    with pytest.raises(UserError, match=expected):
        MINI.tokenize(TOKENIZER, prompts, visual_tokens=7, max_length=50)


def test_the_longest_prompt_that_fits():
    length = MINI.tokenize(TOKENIZER, ["red red"], visual_tokens=7).input_ids.shape[1]
    MINI.tokenize(TOKENIZER, ["red red"], visual_tokens=7, max_length=length)
    with pytest.raises(UserError, match="shorten it"):
        MINI.tokenize(TOKENIZER, ["red red"], visual_tokens=7, max_length=length - 1)


def test_a_tokenizer_without_the_image_token():
    other = PromptFormat("", "{question}", "<picture>", PAD)
    with pytest.raises(UserError, match="the tokenizer has no token '<picture>'"):
        other.tokenize(TOKENIZER, ["red?"], visual_tokens=1)


def test_round_trip():
    assert read_fields(PromptFormat, to_json(MINI), "x") == MINI


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version": 2}, "version is 2, expected 1"),
        ({"after_image": "no question"}, "exactly once"),
        ({"before_image": "<image>"}, "image token must not"),
        ({"pad_token": 3}, "pad_token is 3, expected a text"),
    ],
)
def test_impossible_formats(changes: dict, expected: str):
    with pytest.raises(UserError, match=expected):
        read_fields(PromptFormat, {**to_json(MINI), **changes}, "x")
