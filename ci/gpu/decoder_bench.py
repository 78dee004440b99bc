"""PyTorch, pruned against unpruned, on one model: time to the first token, decoding, memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

from ci.gpu.agreement import random_pruning
from ci.gpu.contenders import Contender, Prompt, Stock, Walk
from ci.gpu.context import Context
from ci.gpu.shapes import Subject
from ci.gpu.timing import Prepare, Times, capture, elapsed_ms, fastest, ratio, take_turns
from ci.gpu.ways import CAUSAL, FLASH, MASKED, NAMES, register_ways

DECODED = 8
"""Tokens of one timed round of decoding."""
ROUNDS = (3, 10)
SHARE_OF_TIME = 12
"""A race takes about one of so many parts of the time that is left."""
GIB = 2**30


@dataclass(frozen=True)
class DecoderBench:
    """One model.

    Attributes:
        context: where and how long.
        subject: the model.
        budgets: average visual tokens kept, and by which ways of attention.
        batches: the smallest first.
    """

    context: Context
    subject: Subject
    budgets: Mapping[int, Sequence[str]]
    batches: Sequence[int]

    @torch.inference_mode()
    def run(self) -> None:
        """Each batch; prompts begin with the image, so that every way means the same."""
        for batch in self.batches[:2] if self.context.quick else self.batches:
            self.context.measure("batches", f"batch {batch}", partial(self._batch, batch))

    def _batch(self, batch: int) -> None:
        pixels, contenders = self.subject.pixels(batch), self.contenders()
        prompt = Prompt(self.subject.tokens(batch), self.subject.encode(pixels))
        self.context.measure("vision", f"batch {batch}", partial(self._vision, pixels))
        self._race("first token", batch, contenders, partial(self._first_token, prompt, pixels))
        for name, contender in contenders.items():
            case = partial(self._memory, contender, prompt, pixels)
            self.context.measure("memory", f"batch {batch}, {name}", case)
        self._race("decoding", batch, contenders, partial(_decoding, prompt), divide=DECODED)
        if self.context.device == "cuda":
            walks = {name: one for name, one in contenders.items() if isinstance(one, Walk)}
            self._race("decoding, CUDA graph", batch, walks, partial(_captured_step, prompt))
            self._race("prompt, CUDA graph", batch, walks, partial(_captured_prompt, prompt))

    def contenders(self) -> dict[str, Contender]:
        """Unpruned ones first, then every budget by those of its ways that are there."""
        missing = register_ways(self.subject.dtype)
        found: dict[str, Contender] = {"unpruned, Hugging Face, SDPA": Stock(self.subject, MASKED)}
        if FLASH not in missing:
            found["unpruned, Hugging Face, flash-attn"] = Stock(self.subject, FLASH)
        for way in (CAUSAL, MASKED):
            found[f"unpruned, walk, {NAMES[way]}"] = Walk(self.subject, way)
        for budget, ways in self.budgets.items():
            pruning = random_pruning(self.subject, budget)
            for way in ways:
                if way not in missing:
                    found[f"{budget} kept, {NAMES[way]}"] = Walk(self.subject, way, pruning)
        return found

    def _vision(self, pixels: Tensor) -> dict[str, float]:
        times = self._take_turns({"vision": _always(partial(self.subject.encode, pixels))})
        return {"ms": median(times["vision"])}

    def _first_token(self, prompt: Prompt, pixels: Tensor, contender: Contender) -> Prepare:
        """Vision, prompt and choice of the first token."""

        def answer() -> Tensor:
            return contender.prefill(Prompt(prompt.tokens, self.subject.encode(pixels))).logits.argmax(-1)

        return _always(answer)

    def _memory(self, contender: Contender, prompt: Prompt, pixels: Tensor) -> dict[str, float]:
        """Of vision, prompt and three tokens, above what the weights and the request take."""
        before, on_gpu = 0, self.context.device == "cuda"
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        filled = contender.prefill(Prompt(prompt.tokens, self.subject.encode(pixels)))
        figures = {"cache_gib": filled.cache_bytes / GIB}
        _decode(contender, contender.start(filled), filled.logits, prompt.last_position, count=3)
        if on_gpu:
            figures["peak_above_weights_gib"] = (torch.cuda.max_memory_allocated() - before) / GIB
        return figures

    def _race(
        self,
        table: str,
        batch: int,
        contenders: Mapping[str, Contender],
        ready: Callable[[Contender], Prepare],
        divide: int = 1,
    ) -> None:
        """Time contenders in turns; one that fails at its first call is recorded and left out."""
        prepared: dict[str, Prepare] = {}
        for name, contender in contenders.items():

            def first_call(name: str = name, contender: Contender = contender) -> None:
                prepare = ready(contender)
                elapsed_ms(prepare(), self.context.device)
                prepared[name] = prepare

            self.context.measure(table, f"batch {batch}, {name}", first_call)
        times: Times = {}
        if not prepared or not self.context.measure(
            table, f"batch {batch}, all in turns", lambda: times.update(self._take_turns(prepared))
        ):
            return
        for name in times:
            case = partial(figures_of, times, name, divide)
            self.context.measure(table, f"batch {batch}, {name}", case, done=True)

    def _take_turns(self, prepared: Mapping[str, Prepare]) -> Times:
        rounds, warmup = ((2, 2), 0) if self.context.quick else (ROUNDS, 1)
        return take_turns(prepared, self.context.device, rounds, self.context.seconds_left / SHARE_OF_TIME, warmup)


def figures_of(times: Times, name: str, divide: int) -> dict[str, float]:
    """A contender's median and spread, and how much faster it is than the fastest that prunes nothing."""
    low, _, high = quantiles(times[name], n=4)
    figures = {"ms": median(times[name]) / divide, "iqr_ms": (high - low) / divide, "rounds": len(times[name])}
    unpruned = [other for other in times if other.startswith("unpruned")]
    if unpruned:
        figures["speedup"] = ratio(times, fastest(times, unpruned), name)
    return figures


def _decode(contender: Contender, state: Any, logits: Tensor, position: Tensor, count: int = DECODED) -> Tensor:
    """Greedy; the chosen token never leaves the device."""
    for _ in range(count):
        position = position + 1
        logits, state = contender.step(state, logits.argmax(-1, keepdim=True), position)
    return logits


def _decoding(prompt: Prompt, contender: Contender) -> Prepare:
    """Tokens behind the prompt, launched one by one."""
    filled = contender.prefill(prompt)
    return lambda: partial(_decode, contender, contender.start(filled), filled.logits, prompt.last_position)


def _captured_step(prompt: Prompt, contender: Contender) -> Prepare:
    """One decoding step, replayed: what is left of it without the cost of launching."""
    filled = contender.prefill(prompt)
    token, position = filled.logits.argmax(-1, keepdim=True), prompt.last_position + 1
    return _always(capture(partial(contender.step, contender.start(filled), token, position)))


def _captured_prompt(prompt: Prompt, contender: Contender) -> Prepare:
    """The prompt without the vision tower, replayed."""
    return _always(capture(partial(contender.prefill, prompt)))


def _always(run: Callable[[], object]) -> Prepare:
    return lambda: run
