"""Generation: each row as if alone, stops, streams that add up for every kind of tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.support.fake_engine import END_ID, FRONTEND, TOKENIZER, VISUAL_TOKENS, FakeSession
from toprl_export.errors import UserError
from toprl_export.models.mini.architecture import build_tokenizer
from toprl_export.runtime.generation import GenerationRequest, GenerationStream, GrowingText, Timings, generate
from toprl_export.runtime.session import EncodedImages, PrefillRequest, PrefillResult

QUESTIONS = ["what colour is the 7?", "is there a star in the image?", "how many circles?", "what number is written?"]


def request(questions: list[str], images: int | None = None, new_tokens: int = 40, **changes) -> GenerationRequest:
    count = len(questions) if images is None else images
    made = GenerationRequest(
        pictures={"pixel_values": np.random.default_rng(3).normal(size=(count, 3, 8, 8)).astype(np.float32)},
        tokens=FRONTEND.tokens(questions),
        keep_counts=(8, 4),
        agent_index=0,
        max_new_tokens=new_tokens,
        end_tokens=(END_ID,),
    )
    return replace(made, **changes)


def recomputed(session: FakeSession, batch: GenerationRequest, row: int) -> list[int]:
    """One row's greedy tokens, without a batch: every token is appended to the prompt's prefill by hand."""
    tokens = replace(
        batch.tokens,
        **{name: array[row : row + 1] for name, array in vars(batch.tokens).items() if array is not None},
    )
    images = session.encode({"pixel_values": batch.pictures["pixel_values"][row : row + 1]})
    prefill = session.prefill(PrefillRequest(tokens, images, batch.keep_counts, batch.agent_index))
    ids, logits = [], prefill.logits
    while len(ids) < batch.max_new_tokens and int(logits[0].argmax()) != END_ID:
        ids.append(int(logits[0].argmax()))
        logits = session.decode(prefill.cache, np.array(ids[-1:]))
    return ids


def test_each_row_is_answered_as_if_alone_and_stops_by_itself():
    batch = request(QUESTIONS)
    result = generate(FakeSession(), TOKENIZER, batch)
    expected = [recomputed(FakeSession(), batch, row) for row in range(len(QUESTIONS))]
    assert [list(ids) for ids in result.token_ids] == expected
    assert len({len(ids) for ids in expected}) > 1, "rows must end at different lengths for this test to see anything"
    assert result.answers == tuple(TOKENIZER.decode(ids) for ids in expected)
    assert not any(END_ID in ids for ids in result.token_ids)
    assert result.ended_by == (END_ID,) * len(QUESTIONS)


def test_prompt_image_agent_and_budget_all_matter():
    first = generate(FakeSession(), TOKENIZER, request(QUESTIONS)).token_ids
    others = [
        request(QUESTIONS, agent_index=1),
        request(QUESTIONS, keep_counts=(8, 2)),
        request(QUESTIONS[::-1]),
        request(QUESTIONS, pictures={"pixel_values": np.zeros((4, 3, 8, 8), np.float32)}),
    ]
    assert all(generate(FakeSession(), TOKENIZER, other).token_ids != first for other in others)


def test_decoding_ends_with_the_longest_row():
    session = FakeSession()
    result = generate(session, TOKENIZER, request(QUESTIONS))
    longest = max(map(len, result.token_ids))
    assert longest < 40
    assert session.decode_calls == len(result.timings.decode_ms) == longest


@pytest.mark.parametrize("limit", [1, 3])
def test_the_limit_cuts_answers(limit: int):
    session = FakeSession()
    whole = generate(FakeSession(), TOKENIZER, request(QUESTIONS)).token_ids
    cut = generate(session, TOKENIZER, request(QUESTIONS, new_tokens=limit))
    assert cut.token_ids == tuple(ids[:limit] for ids in whole)
    assert [end is None for end in cut.ended_by] == [len(ids) >= limit for ids in whole]
    assert session.decode_calls <= limit - 1


def test_one_image_is_encoded_once_for_several_questions():
    session = FakeSession()
    batch = request(QUESTIONS, images=1)
    result = generate(session, TOKENIZER, batch)
    assert session.encoded_images == 1
    copies = replace(
        batch, pictures={"pixel_values": np.repeat(batch.pictures["pixel_values"], len(QUESTIONS), axis=0)}
    )
    assert generate(FakeSession(), TOKENIZER, copies).answers == result.answers


def test_one_image_is_repeated_with_its_saliency_and_others_are_left_alone():
    visual = np.arange(6, dtype=np.float32).reshape(1, 3, 2)
    many = EncodedImages(visual, visual[:, :, 0]).repeated(2)
    assert many.visual.tolist() == [visual[0].tolist()] * 2
    assert many.saliency is not None and many.saliency.tolist() == [[0.0, 2.0, 4.0]] * 2
    assert EncodedImages(visual).repeated(4).saliency is None
    assert many.repeated(2) is many


def test_images_and_prompts_that_do_not_pair():
    with pytest.raises(UserError, match="2 images and 3 prompts do not pair"):
        request(QUESTIONS[:3], images=2)


def test_no_new_tokens():
    with pytest.raises(UserError, match="expected at least 1"):
        request(QUESTIONS, new_tokens=0)


def test_kept_indices_are_those_of_the_session():
    result = generate(FakeSession(), TOKENIZER, request(QUESTIONS))
    assert [kept.shape for kept in result.kept] == [(4, 8), (4, 4)]
    assert all(set(late) <= set(early) for early, late in zip(*result.kept, strict=True))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers(bad: float):
    class Broken(FakeSession):
        def decode(self, cache, tokens):
            return np.full_like(super().decode(cache, tokens), bad)

    with pytest.raises(UserError, match="build the bundle with --precision fp32"):
        generate(Broken(), TOKENIZER, request(QUESTIONS))


def test_a_stream_gives_words_as_they_are_made():
    session = FakeSession()
    stream = GenerationStream(session, TOKENIZER, request(QUESTIONS[:1]))
    first = next(stream)
    assert session.decode_calls == 1, "the first word is known complete once the second is there"
    texts = [first.text, *(piece.text for piece in stream)]
    answer = stream.result.answers[0]
    assert "".join(texts) == answer
    assert [text.strip() for text in texts] == answer.split()


def test_streamed_rows_add_up():
    stream = GenerationStream(FakeSession(), TOKENIZER, request(QUESTIONS))
    rows = [""] * len(QUESTIONS)
    for piece in stream:
        rows[piece.row] += piece.text
    assert tuple(rows) == stream.result.answers == generate(FakeSession(), TOKENIZER, request(QUESTIONS)).answers


def test_a_broken_stream_has_no_result():
    class Broken(FakeSession):
        def decode(self, cache, tokens):
            raise KeyboardInterrupt

    stream = GenerationStream(Broken(), TOKENIZER, request(QUESTIONS))
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    with pytest.raises(RuntimeError, match="ended early"):
        _ = stream.result


def test_timings_by_hand():
    assert Timings(2.0, 10.0, ()).decode_ms_per_token is None
    timings = Timings(2.0, 10.0, (1.0, 3.0))
    assert (timings.decode_ms_per_token, timings.total_ms) == (2.0, 16.0)


def byte_level() -> Tokenizer:
    """Byte-level BPE with few merges: most characters beyond ASCII take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat", "the 猫 sat"], trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama's: blanks are ▁, unknown characters are bytes, the first blank is not part of the text."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {token: 256 + index for index, token in enumerate(["<unk>", "▁", "t", "h", "e", "▁t", "▁th", "▁the"])}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


BYTE_LEVEL, BYTE_FALLBACK = byte_level(), byte_fallback()
texts = st.text(alphabet="the cat 猫🙂é\n.,", max_size=30)


@dataclass
class Dictated:
    """A session that 'generates' given rows of ids, then ends them."""

    rows: list[list[int]]
    end: int
    vocabulary: int

    def encode(self, pictures: dict) -> EncodedImages:
        return EncodedImages(np.zeros((len(pictures["pixel_values"]), VISUAL_TOKENS, 1), np.float32))

    def prefill(self, request: PrefillRequest) -> PrefillResult:
        return PrefillResult(self._logits(0), [0], ())

    def decode(self, cache: list[int], tokens: np.ndarray) -> np.ndarray:
        cache[0] += 1
        return self._logits(cache[0])

    def _logits(self, step: int) -> np.ndarray:
        wanted = [row[step] if step < len(row) else self.end for row in self.rows]
        return np.eye(self.vocabulary, dtype=np.float32)[wanted]


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte-level", "byte-fallback"])
@given(answers=st.lists(texts, min_size=1, max_size=3))
def test_streams_add_up_and_never_show_half_a_character(tokenizer: Tokenizer, answers: list[str]):
    rows = [tokenizer.encode(text).ids for text in answers]
    end = tokenizer.get_vocab_size()
    batch = request(["red?"] * len(rows), new_tokens=max(map(len, rows)) + 1, end_tokens=(end,))
    stream = GenerationStream(Dictated(rows, end, end + 1), tokenizer, batch)
    pieces = list(stream)
    for row, ids in enumerate(rows):
        assert "".join(piece.text for piece in pieces if piece.row == row) == tokenizer.decode(ids)
        assert stream.result.token_ids[row] == tuple(ids)
    assert not any("\ufffd" in piece.text for piece in pieces)


def word_piece() -> Tokenizer:
    """As BERT's: pieces of words, blanks tidied before punctuation."""
    words = ["[UNK]", "the", "cat", "##s", "##é", "it", "'", "s", "don", "'", "t", ".", ",", "?", "n't"]
    tokenizer = Tokenizer(
        models.WordPiece(vocab={word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token="[UNK]")
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def with_special(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(["<pad>", "<other>"])
    return tokenizer


EVERY_KIND = [with_special(make()) for make in (byte_level, byte_fallback, word_piece, build_tokenizer)]


@pytest.mark.parametrize("tokenizer", EVERY_KIND, ids=["byte-level", "byte-fallback", "word-piece", "word-level"])
@given(data=st.data())
def test_whatever_a_model_says_the_pieces_joined_are_the_answer(tokenizer: Tokenizer, data: st.DataObject):
    """Random ids: stray bytes, halves of characters, special tokens between bytes."""
    growing = GrowingText(tokenizer, ())
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=24))
    pieces = [growing.push(token) for token in ids] + [growing.finish()]
    assert "".join(pieces) == growing.text == tokenizer.decode(ids)


def test_a_stray_byte_does_not_hold_up_what_follows():
    """The character before it is decoded anew: handed out at once, it could not be taken back."""
    ids = [*"饕".encode(), 0xE9, *(BYTE_FALLBACK.token_to_id(word) for word in ("▁the", "▁the", "▁the"))]
    growing = GrowingText(BYTE_FALLBACK, ())
    pieces = [growing.push(token) for token in ids]
    assert pieces[-1] == " the" and "".join(pieces) + growing.finish() == growing.text


def test_a_naive_stream_would_show_half_a_character():
    """The negative control of the test above: decoding token by token breaks characters apart."""
    ids = BYTE_LEVEL.encode("é🙂").ids
    assert "".join(BYTE_LEVEL.decode([i]) for i in ids) != "é🙂"


def test_an_answer_cut_within_a_character_still_ends():
    growing = GrowingText(BYTE_LEVEL, ())
    pieces = [growing.push(i) for i in BYTE_LEVEL.encode("the 🙂").ids[:-1]]
    assert "".join(pieces) == "the"
    assert growing.finish() == growing.text.removeprefix("the")
