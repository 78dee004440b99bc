"""PyTorch, pruned against unpruned, on one model: agreement, time to the first token, decoding, memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles

import torch
from torch import Tensor

from ci.gpu.contenders import Contender, Filled, Prompt, Stock, Walk
from ci.gpu.context import Context, NotRun, Wrong
from ci.gpu.shapes import Subject
from ci.gpu.timing import Prepare, Times, capture, fastest, ratio, synchronize, take_turns, wall_ms
from ci.gpu.ways import CAUSAL, FLASH, KERNEL, KERNEL_MASKED, MASKED, NAMES, OPEN, register_ways
from toprl_export.models.reference import Pruning
from toprl_export.pruning.actor import Actor, ActorConfig
from toprl_export.pruning.plan import default_stage_layers, make_plan

BATCHES = (1, 4, 8)
DECODED = 8
"""Tokens of one timed round of decoding."""
ROUNDS = (3, 15)
SHARE_OF_TIME = 12
"""A race takes about one of so many parts of the time that is left."""
LARGEST_DISAGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Of the logits' size, through all layers."""
CONTROL = 3
"""A wrong walk must differ by so many times that."""
GIB = 2**30


@dataclass(frozen=True)
class DecoderBench:
    """One model.

    Attributes:
        context: where and how long.
        subject: the model.
        budgets: average visual tokens kept; the middle one is also run by every way of attention.
        missing: why a way of attention is not there, by its name.
    """

    context: Context
    subject: Subject
    budgets: tuple[int, int, int]
    missing: Mapping[str, str]

    @classmethod
    def of(cls, context: Context, subject: Subject, budgets: tuple[int, int, int]) -> DecoderBench:
        """Find out by which ways the model can attend."""
        missing = register_ways()
        if context.without_kernel:
            missing |= dict.fromkeys((KERNEL, KERNEL_MASKED), context.without_kernel)
        if subject.dtype == torch.float32:
            missing |= dict.fromkeys((KERNEL, KERNEL_MASKED, FLASH), "it takes fp16 and bf16, the model is fp32")
        return cls(context, subject, budgets, missing)

    @torch.inference_mode()
    def run(self) -> None:
        """Agreement first, then each batch, the smallest first."""
        self._agreement(Prompt(self.subject.tokens(1), self.subject.encode(self.subject.pixels(1))))
        for batch in BATCHES[:2] if self.context.quick else BATCHES:
            self.context.prepare("batches", f"batch {batch}", partial(self._batch, batch))

    def _batch(self, batch: int) -> None:
        pixels, contenders = self.subject.pixels(batch), self.contenders()
        prompt = Prompt(self.subject.tokens(batch), self.subject.encode(pixels))
        self.context.measure("vision", f"batch {batch}", partial(self._vision, pixels))
        self._race("first token", batch, contenders, partial(self._first_token, prompt, pixels))
        for name, contender in contenders.items():
            case = partial(self._memory, contender, prompt, pixels)
            self.context.measure("memory", f"batch {batch}, {name}", case)
        self._race("decoding", batch, contenders, partial(self._decoding, prompt), divide=DECODED)
        if self.context.device == "cuda":
            chosen = {name: one for name, one in contenders.items() if NAMES[CAUSAL] in name or NAMES[KERNEL] in name}
            self._race("decoding, CUDA graph", batch, chosen, partial(_captured_step, prompt))
            self._race("prompt, CUDA graph", batch, chosen, partial(_captured_prompt, prompt))

    def contenders(self) -> dict[str, Contender]:
        """Unpruned ones first; the middle budget by every way of attention that is there."""
        found: dict[str, Contender] = {"unpruned, Hugging Face, SDPA": Stock(self.subject, MASKED)}
        if FLASH not in self.missing:
            found["unpruned, Hugging Face, flash-attn"] = Stock(self.subject, FLASH)
        found["unpruned, walk, SDPA, causal"] = Walk(self.subject, CAUSAL)
        for budget in self.budgets:
            ways = [CAUSAL]
            if budget == self.budgets[1]:
                ways += [way for way in (KERNEL, KERNEL_MASKED, FLASH, MASKED) if way not in self.missing]
            for way in ways:
                found[f"{budget} kept, {NAMES[way]}"] = Walk(self.subject, way, self.pruning(budget))
        return found

    def pruning(self, budget: int) -> Pruning:
        """Stages where agents have them, scored by an untrained actor of the default recipe's size."""
        shape = self.subject.shape
        layers = default_stage_layers(shape.layers)
        plan = make_plan(shape.visual_tokens, shape.layers, layers, "actor", [budget])
        torch.manual_seed(0)
        actor = Actor(ActorConfig(shape.hidden, stages=len(layers))).to(self.context.device).eval()
        return Pruning.from_plan(plan, budget, actor)

    def _agreement(self, prompt: Prompt) -> None:
        """The walk against Hugging Face's forward, and the ways of attention against each other on the same tokens."""
        measure, budget = self.context.measure, self.budgets[1]
        stock = Stock(self.subject, MASKED).prefill(prompt)
        unpruned = partial(self._agree, stock, Walk(self.subject, CAUSAL), prompt)
        measure("agreement", "walk, unpruned, against Hugging Face", unpruned)
        measure("control", "the same without causality", partial(self._control, stock, prompt))
        pruning = self.pruning(budget)
        pruned = Walk(self.subject, CAUSAL, pruning).prefill(prompt)
        for way in (MASKED, KERNEL, KERNEL_MASKED, FLASH):
            again = Walk(self.subject, way, pruning, replay=pruned.kept)
            name = f"walk, {budget} kept, {NAMES[way]} against SDPA, causal"
            measure("agreement", name, partial(self._agree, pruned, again, prompt))

    def _agree(self, truth: Filled, contender: Walk, prompt: Prompt) -> dict[str, float]:
        if contender.way in self.missing:
            raise NotRun(self.missing[contender.way])
        error = relative_error(contender.prefill(prompt).logits, truth.logits)
        if error > LARGEST_DISAGREEMENT[self.subject.dtype]:
            raise Wrong(f"the logits differ by {error:.2g} of their size", {})
        return {"relative_error": error}

    def _control(self, truth: Filled, prompt: Prompt) -> dict[str, float]:
        error = relative_error(Walk(self.subject, OPEN).prefill(prompt).logits, truth.logits)
        if error < CONTROL * LARGEST_DISAGREEMENT[self.subject.dtype]:
            raise Wrong(f"a walk without causality differs by only {error:.2g}", {})
        return {"relative_error": error}

    def _vision(self, pixels: Tensor) -> dict[str, float]:
        times = self._take_turns({"vision": _always(partial(self.subject.encode, pixels))})
        return {"ms": median(times["vision"])}

    def _first_token(self, prompt: Prompt, pixels: Tensor, contender: Contender) -> Prepare:
        """Vision, prompt and choice of the first token, as one call that is waited for."""

        def answer() -> Tensor:
            return contender.prefill(Prompt(prompt.tokens, self.subject.encode(pixels))).logits.argmax(-1)

        return _always(answer)

    def _decoding(self, prompt: Prompt, contender: Contender) -> Prepare:
        """Tokens behind the prompt, launched one by one."""
        filled = contender.prefill(prompt)
        return lambda: partial(_decode, contender, contender.start(filled), filled.logits, prompt.last_position)

    def _memory(self, contender: Contender, prompt: Prompt, pixels: Tensor) -> dict[str, float]:
        """Of vision, prompt and three tokens, above what the weights and the request take."""
        on_gpu = self.context.device == "cuda"
        synchronize(self.context.device)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        filled = contender.prefill(Prompt(prompt.tokens, self.subject.encode(pixels)))
        figures = {"cache_gib": filled.cache_bytes / GIB}
        _decode(contender, contender.start(filled), filled.logits, prompt.last_position, count=3)
        synchronize(self.context.device)
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
                wall_ms(prepare(), self.context.device)
                prepared[name] = prepare

            self.context.prepare(table, f"batch {batch}, {name}", first_call)
        times: Times = {}
        if not prepared or not self.context.prepare(
            table, f"batch {batch}, all in turns", lambda: times.update(self._take_turns(prepared))
        ):
            return
        for name in times:
            self.context.measure(table, f"batch {batch}, {name}", partial(figures_of, times, name, divide))

    def _take_turns(self, prepared: Mapping[str, Prepare]) -> Times:
        rounds = (2, 2) if self.context.quick else ROUNDS
        return take_turns(prepared, self.context.device, wall_ms, rounds, self.context.seconds_left / SHARE_OF_TIME)


def figures_of(times: Times, name: str, divide: int) -> dict[str, float]:
    """A contender's median and spread, and how much faster it is than the fastest that prunes nothing."""
    low, _, high = quantiles(times[name], n=4)
    figures = {"ms": median(times[name]) / divide, "iqr_ms": (high - low) / divide, "rounds": len(times[name])}
    unpruned = [other for other in times if other.startswith("unpruned")]
    if unpruned:
        figures["speedup"] = ratio(times, fastest(times, unpruned), name)
    return figures


def relative_error(logits: Tensor, truth: Tensor) -> float:
    """Of the whole; infinite where there is NaN."""
    error = float((logits - truth).norm() / truth.norm())
    return error if error == error else float("inf")


def _decode(contender: Contender, state: object, logits: Tensor, position: Tensor, count: int = DECODED) -> Tensor:
    """Greedy; the chosen token never leaves the device."""
    for _ in range(count):
        position = position + 1
        logits, state = contender.step(state, logits.argmax(-1, keepdim=True), position)
    return logits


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
