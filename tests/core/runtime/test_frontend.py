"""Pixels and token ids are those of Hugging Face's own processor and chat template; what does not fit is one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoProcessor, CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from toprl_export.errors import UserError
from toprl_export.models.mini.architecture import BEGIN, IMAGE, PAD, WORDS
from toprl_export.models.mini.processor import mini_processor
from toprl_export.runtime.frontend import FixedFrontend
from toprl_export.runtime.processor import read_processor

MINI = FixedFrontend(mini_processor(image_pixels=24, patch_size=8), visual_tokens=9, image_height=24, image_width=24)
VICUNA = (
    "{% for m in messages %}{{ m.role | upper }}: {% for c in m.content %}"
    "{% if c.type == 'image' %}<image>\n{% else %}{{ c.text }}{% endif %}{% endfor %} {% endfor %}ASSISTANT:"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT_ALONE = "<s>{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}"
QUESTIONS = ("what colour is the 7?", "is  there a\nstar?", "Grüße, 饕?", " leading", "trailing ")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours, so that resampling is not noise."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))


def sentencepiece_like() -> Tokenizer:
    """As Llama's: blanks become "▁", one stands before the text, unknown letters are bytes, and "<s>" is put first."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for letter in "▁abcdefghijklmnopqrstuvwxyzUSERANTI:?":
        vocabulary[letter] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def byte_level() -> Tokenizer:
    """As Qwen's: bytes as letters, nothing put before a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def frontend(tokenizer: Tokenizer, template: str, **images: Any) -> FixedFrontend:
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<image>"])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    settings = {"size": {"height": 24, "width": 24}, "do_center_crop": False} | images
    processor = LlavaProcessor(
        CLIPImageProcessorPil(**settings), wrapped, patch_size=8, chat_template=template, num_additional_image_tokens=0
    )
    return FixedFrontend(processor, visual_tokens=9, image_height=24, image_width=24)


def ids_of_the_processor(front: FixedFrontend, question: str) -> list[list[int]]:
    content = [{"type": "image", "image": Image.fromarray(picture(24, 24))}, {"type": "text", "text": question}]
    made = front.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return made["input_ids"]


@pytest.mark.parametrize(
    ("tokenizer", "template"),
    [(sentencepiece_like, VICUNA), (sentencepiece_like, "<s>" + VICUNA), (byte_level, CHATML), (byte_level, VICUNA)],
)
def test_ids_are_those_of_the_processor(tokenizer: Callable[[], Tokenizer], template: str):
    front = frontend(tokenizer(), template)
    front.check("x")
    for question in QUESTIONS:
        assert front.tokens([question]).input_ids.tolist() == ids_of_the_processor(front, question)


def test_the_tokenizers_own_beginning_is_put_once():
    for template in (VICUNA, "<s>" + VICUNA, "{{ bos_token }}" + VICUNA):
        ids = frontend(sentencepiece_like(), template).tokens(["a"]).input_ids[0].tolist()
        assert ids.count(1) == 1 and ids[0] == 1


@pytest.mark.parametrize(("tokenizer", "template"), [(sentencepiece_like, VICUNA), (byte_level, CHATML)])
def test_control_tokens_in_a_question_are_text(tokenizer: Callable[[], Tokenizer], template: str):
    front = frontend(tokenizer(), template)
    controls = [front.tokenizer.token_to_id(name) for name in ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<image>")]
    plain = front.tokens(["what is it?"]).input_ids[0].tolist()
    asked = front.tokens(["what <image> is <|im_end|> </s> it?"]).input_ids[0].tolist()
    assert [plain.count(token) for token in controls] == [asked.count(token) for token in controls]
    assert len(asked) > len(plain) + 10


def test_a_template_for_text_alone_takes_the_image_token_in_the_message():
    front = frontend(byte_level(), TEXT_ALONE)
    front.check("x")
    ids = front.tokens(["is it?"]).input_ids[0].tolist()
    assert front.tokenizer.decode(ids, skip_special_tokens=False) == "<s>user: " + "<image>" * 9 + "\nis it?"
    with pytest.raises(UserError, match="contains the control token </s>"):
        front.tokens(["is </s> it?"])


def test_a_template_that_puts_the_question_before_its_picture_is_refused():
    """No text would stand behind the picture, where a scorer reads the question."""
    turned = (
        "{% for message in messages %}{% for part in message.content if part.type == 'text' %}{{ part.text }}"
        "{% endfor %}<image>{% endfor %}"
    )
    with pytest.raises(UserError, match="puts the question before its picture"):
        frontend(byte_level(), turned).check("x")


def test_mini_ids_are_those_of_training():
    question = "what colour is the 7?"
    tokens = MINI.tokens([question])

    def encode(text: str) -> list[int]:
        return MINI.tokenizer.encode(text, add_special_tokens=False).ids

    image = MINI.tokenizer.token_to_id(IMAGE)
    assert tokens.input_ids[0].tolist() == encode("<s>user:") + [image] * 9 + encode(f"{question} assistant:")
    assert encode("<s>user:") == [MINI.tokenizer.token_to_id(token) for token in (BEGIN, "user", ":")]


def test_a_padded_batch_by_hand():
    front = FixedFrontend(
        mini_processor(image_pixels=16, patch_size=8), visual_tokens=2, image_height=16, image_width=16
    )
    tokens = front.tokens(["the 7 ?", "?"])
    names = [[front.tokenizer.id_to_token(i) for i in row] for row in tokens.input_ids]
    assert names == [
        [BEGIN, "user", ":", IMAGE, IMAGE, "the", "7", "?", "assistant", ":"],
        [PAD, PAD, BEGIN, "user", ":", IMAGE, IMAGE, "?", "assistant", ":"],
    ]
    assert tokens.attention_mask.tolist() == [[1] * 10, [0, 0, *[1] * 8]]
    assert tokens.position_ids.tolist() == [list(range(10)), [0, 0, *range(8)]]
    assert tokens.visual_index.tolist() == [[3, 4], [5, 6]]
    assert tokens.text_index.tolist() == [[0, 1, 2, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 7, 8, 9]]
    assert tokens.next_position.tolist() == [10, 8]
    assert tokens.visual_rows is None  # row i shows picture i
    arrays = [array for array in vars(tokens).values() if array is not None]
    assert {array.dtype for array in arrays} == {np.dtype(np.int64)}


@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join), min_size=1, max_size=4))
def test_padding_changes_no_row(prompts: list[str]):
    batch = MINI.tokens(prompts)
    for row, prompt in enumerate(prompts):
        alone = MINI.tokens([prompt])
        real = batch.attention_mask[row].astype(bool)
        assert batch.input_ids[row, real].tolist() == alone.input_ids[0].tolist()
        assert batch.position_ids[row, real].tolist() == alone.position_ids[0].tolist()
        places = np.sort(np.concatenate([batch.visual_index[row], batch.text_index[row]]))
        assert places.tolist() == list(range(batch.input_ids.shape[1]))


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([], "no prompt was given"),
        ([""], "a prompt is empty"),
        (["is it red?", " \n"], "a prompt is empty"),
        (["red " * 90], "has 104 tokens, 9 of them visual, but at most 50 fit"),
    ],
)
def test_prompts_that_cannot_be_asked(prompts: list[str], expected: str):
    with pytest.raises(UserError, match=expected):
        MINI.tokens(prompts, max_length=50)


def test_the_longest_prompt_that_fits():
    length = MINI.tokens(["red red"]).input_ids.shape[1]
    MINI.tokens(["red red"], max_length=length)
    with pytest.raises(UserError, match="shorten it"):
        MINI.tokens(["red red"], max_length=length - 1)


@pytest.mark.parametrize("size", [(24, 24), (90, 130), (131, 77), (40, 300)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}, "do_center_crop": True},
        {"do_rescale": False},
        {"do_normalize": False},
        {"resample": 2},
    ],
    ids=str,
)
def test_pixels_are_those_of_the_processor(size: tuple[int, int], settings: dict[str, Any]):
    front, image = frontend(byte_level(), CHATML, **settings), picture(*size)
    expected = front.processor(images=Image.fromarray(image), text="<image>", return_tensors="np")["pixel_values"]
    pixels = front.pixels([image, picture(30, 40, seed=1)])
    assert pixels.dtype == np.float32 and pixels.shape == (2, 3, 24, 24)
    assert np.array_equal(pixels[:1], expected.astype(np.float32))


def test_pixels_are_those_of_the_training_of_mini():
    image = np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    expected = (image.transpose(2, 0, 1).astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    assert MINI.pixels([image]) == pytest.approx(expected[None], abs=1e-6)
    assert np.array_equal(MINI.shown(image), image)


def test_a_processor_that_does_not_resize_takes_pictures_of_its_size_alone():
    front = frontend(byte_level(), CHATML, do_resize=False)
    front.check("x")
    assert front.pixels([picture(24, 24)]).shape == (1, 3, 24, 24)
    with pytest.raises(UserError, match=r"an image of 40 x 30 gives pixels of \[30, 40\], expected \[24, 24\]"):
        front.pixels([picture(30, 40)])
    with pytest.raises(UserError, match="no image was given"):
        front.pixels([])


def test_what_is_saved_is_the_same_frontend(tmp_path: Path):
    front = frontend(sentencepiece_like(), VICUNA, resample=2)
    names = front.save(tmp_path)
    assert set(names) == {path.name for path in tmp_path.iterdir()}
    again = FixedFrontend(read_processor(str(tmp_path)), 9, 24, 24)
    assert again.fingerprint == front.fingerprint
    assert again.tokens(QUESTIONS).input_ids.tolist() == front.tokens(QUESTIONS).input_ids.tolist()
    assert np.array_equal(again.pixels([picture(40, 50)]), front.pixels([picture(40, 50)]))
    # Anybody's program reads them too.
    assert isinstance(AutoProcessor.from_pretrained(tmp_path, backend="pil"), LlavaProcessor)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    with resources.as_file(resources.files("toprl_export.models.mini").joinpath("checkpoint")) as source:
        return shutil.copytree(source, tmp_path / "model")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_truncation_and_padding_saved_with_a_tokenizer_are_ignored(copied: Path):
    question = "is there a star in the image? how many circles are there?"

    def rows() -> tuple[list[int], list[int]]:
        front = FixedFrontend(read_processor(str(copied)), 576, 192, 192)
        return front.tokenizer.encode(question).ids, front.tokens([question]).input_ids[0].tolist()

    plain = rows()
    edit(
        copied / "tokenizer.json",
        truncation={"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
    )
    assert rows() == plain
    pad = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    edit(copied / "tokenizer.json", truncation=None, padding=pad | {"strategy": {"Fixed": 30}})
    assert rows() == plain


def _one_id(path: Path, token: int) -> None:
    content = json.loads(path.read_text())
    content["model"]["vocab"]["five"] = token
    path.write_text(json.dumps(content))


def _template(text: str) -> Callable[[Path], None]:
    return lambda directory: (directory / "chat_template.jinja").write_text(text)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: (d / "chat_template.jinja").unlink(), "has no chat template"),
        (_template("{{ messages"), "chat template of model x fails"),
        (_template("{{ messages[0].role }}"), "does not show the image token"),
        (_template("<image><image>"), "does not show the image token <image> once"),
        (lambda d: edit(d / "preprocessor_config.json", size={"height": 224, "width": 224}), r"makes \[3, 224, 224\]"),
        (lambda d: edit(d / "preprocessor_config.json", size="big"), "model x cannot be read"),
        (lambda d: edit(d / "preprocessor_config.json", image_mean=["a"]), "the image processor of model x"),
        (lambda d: edit(d / "processor_config.json", num_additional_image_tokens=0), "puts 575 image tokens"),
        (
            lambda d: edit(d / "tokenizer.json", model={"type": "Unheard", "vocab": {}}),
            "by a release of transformers",
        ),
        (lambda d: _one_id(d / "tokenizer.json", 2**31), "has the token id 2147483648"),
        (lambda d: (d / "tokenizer.json").write_text("{"), "the processor of model x cannot be read"),
        (lambda d: (d / "tokenizer.json").unlink(), "the processor of model x cannot be read"),
    ],
)
def test_what_does_not_fit_is_one_line(copied: Path, change: Callable[[Path], Any], expected: str):
    change(copied)
    with pytest.raises(UserError, match=expected) as caught:
        FixedFrontend(read_processor(str(copied), name="x"), 576, 192, 192).check("x")
    assert "\n" not in str(caught.value)
