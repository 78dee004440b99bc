"""Greedy answers from an engine session: a batch at a time, streamed word by word, every part timed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from toprl_export.errors import UserError
from toprl_export.runtime.layout import TokenBatch
from toprl_export.runtime.session import EngineSession, KeepCounts, PrefillRequest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

T = TypeVar("T")

_LAST_WORD = re.compile(r"\s+\S*$")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class GenerationRequest:
    """One batch to answer.

    Attributes:
        pictures: what the tower takes, by name; where each row of the batch shows one picture, as many as prompts, or
            one that all are about.
        tokens: the b prompts.
        keep_counts: tokens kept at every stage.
        agent_index: which agent scores; 0 where the bundle was built from a baseline.
        max_new_tokens: the longest answer, in tokens; at least 1.
        end_tokens: ids that end an answer.
    """

    pictures: Mapping[str, NDArray[Any]]
    tokens: TokenBatch
    keep_counts: KeepCounts
    agent_index: int
    max_new_tokens: int
    end_tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1: allow more new tokens")
        if self.tokens.visual_rows is not None:
            return  # prompts name the rows they show
        images = len(next(iter(self.pictures.values())))
        if images not in (1, self.tokens.batch):
            raise UserError(
                f"{images} images and {self.tokens.batch} prompts do not pair: "
                "give as many of one as of the other, or one image"
            )


@dataclass(frozen=True)
class Timings:
    """Milliseconds spent in the engine for one batch; ``decode_ms`` has one entry per decode step."""

    vision_ms: float
    prefill_ms: float
    decode_ms: tuple[float, ...]

    @property
    def decode_ms_per_token(self) -> float | None:
        """Average time of a decode step, or None where the first token was the last."""
        return sum(self.decode_ms) / len(self.decode_ms) if self.decode_ms else None

    @property
    def total_ms(self) -> float:
        """Vision, prefill and all decode steps."""
        return self.vision_ms + self.prefill_ms + sum(self.decode_ms)


@dataclass(frozen=True)
class TextPiece:
    """Newly completed words of one batch row's answer; a row's pieces joined are its answer."""

    row: int
    text: str


@dataclass(frozen=True)
class Generation:
    """The answers to a batch.

    Attributes:
        answers: one text per batch row.
        token_ids: the tokens of each, the end token left out.
        ended_by: the end token of each; None where it is as long as it may be.
        kept: per stage, which of the n visual tokens were kept, ``int64 [b, k_t]``, ascending.
        timings: time in the engine.
    """

    answers: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    ended_by: tuple[int | None, ...]
    kept: tuple[NDArray[np.int64], ...]
    timings: Timings


class GenerationStream(Iterator[TextPiece]):
    """Answers as they grow: iterate over the pieces, then (or instead) ask for the ``result``."""

    def __init__(self, session: EngineSession, tokenizer: Tokenizer, request: GenerationRequest) -> None:
        self._result: Generation | None = None
        self._pieces = self._run(session, tokenizer, request)

    def __next__(self) -> TextPiece:
        return next(self._pieces)

    @property
    def result(self) -> Generation:
        """The complete answers; generates what is still missing.

        Raises:
            RuntimeError: the generation ended early by an exception.
        """
        for _ in self._pieces:
            pass
        if self._result is None:
            raise RuntimeError("the generation ended early: start it again")
        return self._result

    def _run(self, session: EngineSession, tokenizer: Tokenizer, request: GenerationRequest) -> Iterator[TextPiece]:
        batch = request.tokens.batch
        images, vision_ms = _timed(partial(session.encode, request.pictures))
        prompt = PrefillRequest(request.tokens, images.repeated(batch), request.keep_counts, request.agent_index)
        prefill, prefill_ms = _timed(partial(session.prefill, prompt))
        answers = [GrowingText(tokenizer, request.end_tokens) for _ in range(batch)]
        logits, decode_ms = prefill.logits, list[float]()
        while True:
            chosen = _most_likely(logits)  # [b, V] -> [b]
            for row, answer in enumerate(answers):
                yield from _pieces(row, answer.push(int(chosen[row])))
            # The prefill gave the first token, so k tokens take k - 1 decode steps.
            if len(decode_ms) + 1 == request.max_new_tokens or all(answer.ended for answer in answers):
                break
            logits, elapsed = _timed(partial(session.decode, prefill.cache, chosen))
            decode_ms.append(elapsed)
        for row, answer in enumerate(answers):
            yield from _pieces(row, answer.finish())
        self._result = Generation(
            answers=tuple(answer.text for answer in answers),
            token_ids=tuple(tuple(answer.ids) for answer in answers),
            ended_by=tuple(answer.ended_by for answer in answers),
            kept=prefill.kept,
            timings=Timings(vision_ms, prefill_ms, tuple(decode_ms)),
        )


def generate(session: EngineSession, tokenizer: Tokenizer, request: GenerationRequest) -> Generation:
    """Answer a batch: the most likely token at every step, until every row has ended.

    Raises:
        UserError: the engine's logits are not numbers.
    """
    return GenerationStream(session, tokenizer, request).result


class GrowingText:
    """One answer's tokens as text that is handed out when words are complete.

    A token alone has no text: it may be part of a word, of a character (byte-level vocabularies) or change the
    blanks before it. So everything so far is decoded each time, and only the part not handed out yet is given.
    """

    def __init__(self, tokenizer: Tokenizer, end_tokens: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._given = ""
        self._special = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self.ids: list[int] = []
        self.ended_by: int | None = None

    @property
    def ended(self) -> bool:
        """Whether an end token came."""
        return self.ended_by is not None

    @property
    def text(self) -> str:
        """All tokens so far, decoded without special tokens."""
        return self._decoded(self.ids)

    def push(self, token: int) -> str:
        """Take the next token; the words it completes, or nothing once the answer has ended."""
        if self.ended:
            return ""
        if token in self._end_tokens:
            self.ended_by = token
            return self.finish()
        self.ids.append(token)
        return self._give(_complete_words(self._decoded(self._settled())))

    def finish(self) -> str:
        """What is left when no token follows."""
        return self._give(self.text)

    def _settled(self) -> list[int]:
        """The tokens so far without the bytes at their end.

        Byte-fallback vocabularies (Llama's) decode neighbouring bytes together, and one stray byte takes the characters
        before it along.
        """
        end = len(self.ids)
        while end and self._is_open(self.ids[end - 1]):
            end -= 1
        return self.ids[:end]

    def _is_open(self, token: int) -> bool:
        name = self._tokenizer.id_to_token(token)
        # Special tokens are left out before bytes are joined, so bytes on both sides of one are neighbours.
        return name is None or bool(_BYTE.fullmatch(name)) or token in self._special

    def _decoded(self, ids: list[int]) -> str:
        decoded: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return decoded

    def _give(self, text: str) -> str:
        # A vocabulary may rewrite what it decoded before; what was handed out cannot be taken back.
        new = text[len(self._given) :] if text.startswith(self._given) else ""
        self._given += new
        return new


def _complete_words(text: str) -> str:
    """``text`` without its last word, which may still grow; scripts written without blanks grow by characters."""
    if text and unicodedata.east_asian_width(text[-1]) == "W":
        return text
    last = _LAST_WORD.search(text)
    return text[: last.start()] if last else ""


def _pieces(row: int, text: str) -> Iterator[TextPiece]:
    if text:
        yield TextPiece(row, text)


def _most_likely(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    if not np.isfinite(logits).all():
        raise UserError(
            "NaN or infinite logits: the model overflows the engine's precision: build the bundle with --precision fp32"
        )
    chosen: NDArray[np.int64] = logits.argmax(axis=-1)
    return chosen


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    start = perf_counter()
    outcome = work()
    return outcome, (perf_counter() - start) * 1e3
