"""PyTorch, pruned against unpruned: do all attention implementations compute the same model, and how fast are they?

Models have the sizes of LLaVA-1.5-7B and LLaVA-NeXT-7B and random weights. Shallow models of the full width are held
against fp32; then time to the first token, decoding and memory are measured on the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

from ci.gpu.context import Context, NotRun, WrongResult
from ci.gpu.decoders import (
    CAUSAL,
    FLASH,
    KERNEL,
    KERNEL_MASKED,
    MASKED,
    NAMES,
    NOT_CAUSAL,
    TAKE_MASKS,
    BenchDecoder,
    HuggingFaceDecoder,
    Prompt,
    WalkDecoder,
    register_implementations,
)
from ci.gpu.models import LLAVA, LLAVA_NEXT, BenchModel, Shape, random_model, small
from ci.gpu.timing import Prepare, Times, capture, elapsed_ms, fastest, ratio, take_turns
from toprl_export.models.reference import Pruning
from toprl_export.pruning.actor import Actor, ActorConfig
from toprl_export.pruning.plan import default_stage_layers, make_plan

PYTORCH = (CAUSAL, MASKED, FLASH)
OURS = (CAUSAL, KERNEL, KERNEL_MASKED)
"""Checked in a process of its own: after an illegal memory access a GPU context refuses everything."""
SHALLOW = 4
LARGEST_ERROR = 1e-4
"""Relative, of the logits in fp32."""
CONTROL = 100
"""A walk that is wrong on purpose must differ by this many times ``LARGEST_ERROR``."""
TIMES_SDPA = 2.0
"""How many times the error of SDPA in 16 bits another implementation's may be."""
SMALLEST_ERROR = 1e-5
"""Smaller ones count as this, so that a ratio of two roundings decides nothing."""
DECODED = 8
"""Tokens of one timed round of decoding."""
ROUNDS = (3, 10)
SHARE_OF_TIME = 12
"""A comparison takes about this part, one in twelve, of the time that is left."""
GIB = 2**30


def check_llava(context: Context) -> None:
    """576 visual tokens; 192, 128 and 64 kept on average over the layers."""
    _check(context, LLAVA, {192: (CAUSAL,), 128: PYTORCH, 64: (CAUSAL,)}, (1, 4, 8))


def check_llava_next(context: Context) -> None:
    """2,880 visual tokens; 640, 320 and 160 kept on average over the layers."""
    _check(context, LLAVA_NEXT, {640: (CAUSAL,), 320: PYTORCH, 160: (CAUSAL,)}, (1, 4, 8))


def check_llava_next_kernel(context: Context) -> None:
    """320 kept, by our kernel.

    Raises:
        NotRun: it is not to be had here.
    """
    dtype = _dtype(context)
    missing = register_implementations(dtype)
    if KERNEL in missing:
        raise NotRun(missing[KERNEL])
    _check(context, LLAVA_NEXT, {320: OURS}, (1, 8))


def _check(context: Context, shape: Shape, budgets: Mapping[int, Sequence[str]], batches: Sequence[int]) -> None:
    """Small shapes keep the same fractions of their tokens, at least two."""
    if context.quick:
        full, shape = shape.visual_tokens, small(shape)
        budgets = {max(2, budget * shape.visual_tokens // full): attention for budget, attention in budgets.items()}
    device, dtype = context.device, _dtype(context)
    budget, implementations = max(budgets.items(), key=lambda item: len(item[1]))

    def agree() -> None:
        check_agreement(context, random_model(replace(shape, layers=SHALLOW), device, dtype), budget, implementations)

    def race() -> None:
        DecoderBench(context, random_model(shape, device, dtype), budgets, batches).run()

    context.measure("agreement", "shallow model", agree)
    context.measure("batches", "whole model", race)


def _dtype(context: Context) -> torch.dtype:
    return torch.bfloat16 if context.device == "cuda" else torch.float32


def random_pruning(model: BenchModel, budget: int) -> Pruning:
    """Stages where agents have them, scored by an untrained actor of the default recipe's size."""
    shape = model.shape
    layers = default_stage_layers(shape.layers)
    plan = make_plan(shape.visual_tokens, shape.layers, layers, "actor", [budget])
    torch.manual_seed(0)
    actor = Actor(ActorConfig(shape.hidden, stages=len(layers))).to(model.device).eval()
    return Pruning.from_plan(plan, budget, actor)


@torch.inference_mode()
def check_agreement(context: Context, model: BenchModel, budget: int, implementations: Sequence[str]) -> None:
    """The walk against Hugging Face's forward in fp32, then every implementation in the model's type against fp32.

    Ways that take a mask are also tried with text before the image.
    """
    exact, missing = model.in_fp32(), register_implementations(model.dtype)
    image = model.encode(model.pixels(1))
    image_first, text_first = (Prompt(model.tokens(1, first), image) for first in (0, model.shape.text // 2))
    cases = {"image first": (image_first, CAUSAL), "text, image, text": (text_first, MASKED)}
    for name, (prompt, implementation) in cases.items():
        case = partial(unpruned_error, exact, implementation, prompt)
        context.measure("agreement", f"walk, unpruned, {NAMES[implementation]}, {name}", case)
    context.measure("control", "no causality", partial(control, exact, image_first))
    pruning = random_pruning(exact, budget)
    for implementation in implementations:
        if implementation != MASKED:
            prompt = text_first if implementation in TAKE_MASKS else image_first
            case = partial(pruned_error, exact, model, pruning, implementation, prompt, missing)
            context.measure("pruned", f"walk, {budget} kept, {NAMES[implementation]}", case)


def unpruned_error(exact: BenchModel, implementation: str, prompt: Prompt) -> dict[str, float]:
    """Of the walk's logits against Hugging Face's.

    Raises:
        WrongResult: it is more than fp32 explains.
    """
    error = relative_error(
        WalkDecoder(exact, implementation).prefill(prompt).logits,
        HuggingFaceDecoder(exact, MASKED).prefill(prompt).logits,
    )
    if not error <= LARGEST_ERROR:
        raise WrongResult(f"the logits differ by {error:.2g} of their size")
    return {"relative_error": error}


def control(exact: BenchModel, prompt: Prompt) -> dict[str, float]:
    """The error of a walk in which every token sees all others.

    Raises:
        WrongResult: it is so small that the agreement of others means nothing.
    """
    error = relative_error(
        WalkDecoder(exact, NOT_CAUSAL).prefill(prompt).logits, HuggingFaceDecoder(exact, MASKED).prefill(prompt).logits
    )
    if not error >= CONTROL * LARGEST_ERROR:
        raise WrongResult(f"a walk without causality differs by only {error:.2g}")
    return {"relative_error": error}


def pruned_error(
    exact: BenchModel, model: BenchModel, pruning: Pruning, implementation: str, prompt: Prompt, missing: dict[str, str]
) -> dict[str, float]:
    """How far off a pruned walk is that keeps what the exact one kept, over how far SDPA with a mask is.

    Raises:
        NotRun: the implementation is not available here.
        WrongResult: it is more than twice as far off.
    """
    if implementation in missing:
        raise NotRun(missing[implementation])
    truth = WalkDecoder(exact, MASKED, pruning).prefill(prompt)

    def error(chosen: str) -> float:
        return relative_error(WalkDecoder(model, chosen, pruning, truth.kept).prefill(prompt).logits, truth.logits)

    ours, theirs = error(implementation), error(MASKED)
    figures = {
        "of_sdpa_error": ours / max(theirs, SMALLEST_ERROR),
        "relative_error": ours,
        "sdpa_relative_error": theirs,
    }
    if not figures["of_sdpa_error"] <= TIMES_SDPA:
        raise WrongResult(f"{figures['of_sdpa_error']:.2g} times SDPA's error", figures)
    return figures


def relative_error(logits: Tensor, truth: Tensor) -> float:
    """Of the whole; NaN where there is NaN."""
    return float((logits - truth).norm() / truth.norm())


@dataclass(frozen=True)
class DecoderBench:
    """One model.

    Attributes:
        context: where and how long.
        model: the model.
        budgets: average visual tokens kept, and by which attention implementations.
        batches: the smallest first.
    """

    context: Context
    model: BenchModel
    budgets: Mapping[int, Sequence[str]]
    batches: Sequence[int]

    @torch.inference_mode()
    def run(self) -> None:
        """Each batch; prompts begin with the image, so that all implementations compute the same."""
        for batch in self.batches[:2] if self.context.quick else self.batches:
            self.context.measure("batches", f"batch {batch}", partial(self._batch, batch))

    def _batch(self, batch: int) -> None:
        pixels, candidates = self.model.pixels(batch), self.candidates()
        prompt = Prompt(self.model.tokens(batch), self.model.encode(pixels))
        self.context.measure("vision", f"batch {batch}", partial(self._vision, pixels))
        self._race("first token", batch, candidates, partial(self._first_token, prompt, pixels))
        for name, candidate in candidates.items():
            case = partial(self._memory, candidate, prompt, pixels)
            self.context.measure("memory", f"batch {batch}, {name}", case)
        self._race("decoding", batch, candidates, partial(_decoding, prompt), divide=DECODED)
        if self.context.device == "cuda":
            walks = {name: one for name, one in candidates.items() if isinstance(one, WalkDecoder)}
            self._race("decoding, CUDA graph", batch, walks, partial(_captured_step, prompt))
            self._race("prompt, CUDA graph", batch, walks, partial(_captured_prompt, prompt))

    def candidates(self) -> dict[str, BenchDecoder]:
        """Unpruned ones first, then every budget by those of its implementations that are available."""
        missing = register_implementations(self.model.dtype)
        found: dict[str, BenchDecoder] = {"unpruned, Hugging Face, SDPA": HuggingFaceDecoder(self.model, MASKED)}
        if FLASH not in missing:
            found["unpruned, Hugging Face, flash-attn"] = HuggingFaceDecoder(self.model, FLASH)
        for implementation in (CAUSAL, MASKED):
            found[f"unpruned, walk, {NAMES[implementation]}"] = WalkDecoder(self.model, implementation)
        for budget, implementations in self.budgets.items():
            pruning = random_pruning(self.model, budget)
            for implementation in implementations:
                if implementation not in missing:
                    found[f"{budget} kept, {NAMES[implementation]}"] = WalkDecoder(self.model, implementation, pruning)
        return found

    def _vision(self, pixels: Tensor) -> dict[str, float]:
        times = self._take_turns({"vision": _always(partial(self.model.encode, pixels))})
        return {"ms": median(times["vision"])}

    def _first_token(self, prompt: Prompt, pixels: Tensor, candidate: BenchDecoder) -> Prepare:
        """Vision, prompt and choice of the first token."""

        def answer() -> Tensor:
            return candidate.prefill(Prompt(prompt.tokens, self.model.encode(pixels))).logits.argmax(-1)

        return _always(answer)

    def _memory(self, candidate: BenchDecoder, prompt: Prompt, pixels: Tensor) -> dict[str, float]:
        """Of vision, prompt and three tokens, above what the weights and the request take."""
        before, on_gpu = 0, self.context.device == "cuda"
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        filled = candidate.prefill(Prompt(prompt.tokens, self.model.encode(pixels)))
        figures = {"cache_gib": filled.cache_bytes / GIB}
        _decode(candidate, candidate.start(filled), filled.logits, prompt.last_position, count=3)
        if on_gpu:
            figures["peak_above_weights_gib"] = (torch.cuda.max_memory_allocated() - before) / GIB
        return figures

    def _race(
        self,
        table: str,
        batch: int,
        candidates: Mapping[str, BenchDecoder],
        ready: Callable[[BenchDecoder], Prepare],
        divide: int = 1,
    ) -> None:
        """Time candidates in turns; one that fails at its first call is recorded and left out."""
        prepared: dict[str, Prepare] = {}
        for name, candidate in candidates.items():

            def first_call(name: str = name, candidate: BenchDecoder = candidate) -> None:
                prepare = ready(candidate)
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
    """A candidate's median and interquartile range, and its speedup over the fastest that prunes nothing."""
    low, _, high = quantiles(times[name], n=4)
    figures = {"ms": median(times[name]) / divide, "iqr_ms": (high - low) / divide, "rounds": len(times[name])}
    unpruned = [other for other in times if other.startswith("unpruned")]
    if unpruned:
        figures["speedup"] = ratio(times, fastest(times, unpruned), name)
    return figures


def _decode(candidate: BenchDecoder, state: Any, logits: Tensor, position: Tensor, count: int = DECODED) -> Tensor:
    """Greedy; the chosen token never leaves the device."""
    for _ in range(count):
        position = position + 1
        logits, state = candidate.step(state, logits.argmax(-1, keepdim=True), position)
    return logits


def _decoding(prompt: Prompt, candidate: BenchDecoder) -> Prepare:
    """Tokens behind the prompt, launched one by one."""
    filled = candidate.prefill(prompt)
    return lambda: partial(_decode, candidate, candidate.start(filled), filled.logits, prompt.last_position)


def _captured_step(prompt: Prompt, candidate: BenchDecoder) -> Prepare:
    """One decoding step, replayed: what is left of it without the cost of launching."""
    filled = candidate.prefill(prompt)
    token, position = filled.logits.argmax(-1, keepdim=True), prompt.last_position + 1
    return _always(capture(partial(candidate.step, candidate.start(filled), token, position)))


def _captured_prompt(prompt: Prompt, candidate: BenchDecoder) -> Prepare:
    """The prompt without the vision tower, replayed."""
    return _always(capture(partial(candidate.prefill, prompt)))


def _always(run: Callable[[], object]) -> Prepare:
    return lambda: run
