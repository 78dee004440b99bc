"""Whether every way of attention computes the same model: shallow models of the full width, against fp32."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ci.gpu.contenders import Prompt, Stock, Walk
from ci.gpu.context import Context, NotRun, Wrong
from ci.gpu.shapes import Subject
from ci.gpu.ways import CAUSAL, MASKED, NAMES, OPEN, TAKE_MASKS, register_ways
from toprl_export.models.reference import Pruning
from toprl_export.pruning.actor import Actor, ActorConfig
from toprl_export.pruning.plan import default_stage_layers, make_plan

LARGEST_ERROR = 1e-4
"""Of the logits' size, in fp32."""
CONTROL = 100
"""A wrong walk must differ by so many times that."""
TIMES_SDPA = 2.0
"""How much further off than SDPA's answer in 16 bits another way's may be."""
SMALLEST_ERROR = 1e-5
"""What an error is at least counted as."""


def random_pruning(subject: Subject, budget: int) -> Pruning:
    """Stages where agents have them, scored by an untrained actor of the default recipe's size."""
    shape = subject.shape
    layers = default_stage_layers(shape.layers)
    plan = make_plan(shape.visual_tokens, shape.layers, layers, "actor", [budget])
    torch.manual_seed(0)
    actor = Actor(ActorConfig(shape.hidden, stages=len(layers))).to(subject.device).eval()
    return Pruning.from_plan(plan, budget, actor)


@torch.inference_mode()
def check_agreement(context: Context, subject: Subject, budget: int, ways: Sequence[str]) -> None:
    """The walk against Hugging Face's forward in fp32, then every way in the subject's type against fp32.

    Ways that take a mask are also tried with text before the image.
    """
    exact, missing = subject.in_fp32(), register_ways(subject.dtype)
    image = subject.encode(subject.pixels(1))
    straight, usual = (Prompt(subject.tokens(1, first), image) for first in (0, subject.shape.text // 2))
    stock = {"image first": (straight, CAUSAL), "text, image, text": (usual, MASKED)}
    for name, (prompt, way) in stock.items():
        case = partial(unpruned_error, exact, way, prompt)
        context.measure("agreement", f"walk, unpruned, {NAMES[way]}, {name}", case)
    context.measure("control", "no causality", partial(control, exact, straight))
    pruning = random_pruning(exact, budget)
    for way in ways:
        if way != MASKED:
            prompt = usual if way in TAKE_MASKS else straight
            case = partial(pruned_error, exact, subject, pruning, way, prompt, missing)
            context.measure("pruned", f"walk, {budget} kept, {NAMES[way]}", case)


def unpruned_error(exact: Subject, way: str, prompt: Prompt) -> dict[str, float]:
    """Of the walk's logits against Hugging Face's.

    Raises:
        Wrong: it is more than fp32 explains.
    """
    error = relative_error(Walk(exact, way).prefill(prompt).logits, Stock(exact, MASKED).prefill(prompt).logits)
    if not error <= LARGEST_ERROR:
        raise Wrong(f"the logits differ by {error:.2g} of their size")
    return {"relative_error": error}


def control(exact: Subject, prompt: Prompt) -> dict[str, float]:
    """The error of a walk in which every token sees all others.

    Raises:
        Wrong: it is so small that the agreement of others means nothing.
    """
    error = relative_error(Walk(exact, OPEN).prefill(prompt).logits, Stock(exact, MASKED).prefill(prompt).logits)
    if not error >= CONTROL * LARGEST_ERROR:
        raise Wrong(f"a walk without causality differs by only {error:.2g}")
    return {"relative_error": error}


def pruned_error(
    exact: Subject, subject: Subject, pruning: Pruning, way: str, prompt: Prompt, missing: dict[str, str]
) -> dict[str, float]:
    """How far off a pruned walk is that keeps what the exact one kept, over how far SDPA with a mask is.

    Raises:
        NotRun: there is no such way here.
        Wrong: it is more than twice as far off.
    """
    if way in missing:
        raise NotRun(missing[way])
    truth = Walk(exact, MASKED, pruning).prefill(prompt)

    def error(chosen: str) -> float:
        return relative_error(Walk(subject, chosen, pruning, truth.kept).prefill(prompt).logits, truth.logits)

    ours, theirs = error(way), error(MASKED)
    figures = {
        "of_sdpa_error": ours / max(theirs, SMALLEST_ERROR),
        "relative_error": ours,
        "sdpa_relative_error": theirs,
    }
    if not figures["of_sdpa_error"] <= TIMES_SDPA:
        raise Wrong(f"{figures['of_sdpa_error']:.2g} times SDPA's error", figures)
    return figures


def relative_error(logits: Tensor, truth: Tensor) -> float:
    """Of the whole; NaN where there is NaN."""
    return float((logits - truth).norm() / truth.norm())
