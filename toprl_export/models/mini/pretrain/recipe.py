"""The recipe of `mini`: patches first, then questions over few visual tokens, then over all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from toprl_export.models.mini.architecture import BEGIN, build_tokenizer, fresh_mini
from toprl_export.models.mini.pretrain.batches import (
    Example,
    PackedBatch,
    QuestionMix,
    cluttered_example,
    easy_vqa_example,
    mosaic_example,
    packed_batch,
    patch_batch,
    scene_example,
)
from toprl_export.models.mini.pretrain.finish import write_checkpoint
from toprl_export.models.mini.pretrain.objective import (
    PATCHES,
    PatchHeads,
    answer_questions,
    prepare_for_training,
    vision_features,
)
from toprl_export.seeding import numpy_rng, seed_everything, torch_generator
from toprl_export.tasks.easy_vqa import PICTURE_PIXELS, load_easy_vqa
from toprl_export.tasks.mini_tasks import ASKERS
from toprl_export.tasks.scenes import load_glyphs
from toprl_export.tasks.task import Split

TASKS = (*ASKERS, "easy-vqa")
AUXILIARY_WEIGHT = 0.3
THIRD_OR_ALL = (192, PATCHES, PATCHES)
MOSTLY_THIRD = (192, 192, PATCHES)
REPORT_EVERY = 100
BALANCED = QuestionMix()


@dataclass(frozen=True)
class Phase:
    """One phase of training.

    Attributes:
        name: of the phase and its file.
        steps: optimizer steps.
        images: of one step.
        kept: each step keeps one of these numbers of visual tokens, the background dropped at random; without any, the
            phase trains the vision tower on mosaics alone.
        peak: learning rate after the warm-up.
        final: learning rate at the end.
        vision_rate: the vision tower's learning rate as a multiple of the others'.
        numbers: share of images that show a number.
        easy_vqa: share of images that come from easy-vqa.
        picture_pixels: height and width of easy-vqa's pictures on the canvas.
        mix: the questions about all other images.
        places: an auxiliary loss makes projected patches predict their row and column.
        clutter: scenes are as crowded as the tasks' own.
        mosaics: mosaics added to each step, as in the first phase.
    """

    name: str
    steps: int
    images: int
    kept: tuple[int, ...]
    peak: float
    final: float
    vision_rate: float = 1.0
    numbers: float = 0.22
    easy_vqa: float = 0.28
    picture_pixels: int = PICTURE_PIXELS
    mix: QuestionMix = BALANCED
    places: bool = False
    clutter: bool = False
    mosaics: int = 0


@dataclass(frozen=True)
class PretrainRecipe:
    """The phases in order. ``peak`` and ``final`` bound each phase's linearly decaying learning rate."""

    seed: int = 0
    phases: tuple[Phase, ...] = (
        Phase("patches", 500, 32, (), 3e-3, 5e-4),
        Phase("few-tokens", 1300, 24, (96,), 2e-3, 1.8e-3, 0.3, picture_pixels=64),
        Phase("more-tokens", 450, 24, (64, 96, 224), 2e-3, 1e-3, places=True),
        Phase("clutter", 400, 24, (96, 224), 1.5e-3, 1e-3, easy_vqa=0.4, places=True, clutter=True),
        Phase("all-tokens", 380, 16, (PATCHES,), 1e-3, 1e-5, easy_vqa=0.4, places=True, clutter=True),
        # Without steps over a third of the tokens the model forgets how to count where some are missing.
        Phase("third-or-all", 220, 16, THIRD_OR_ALL, 8e-4, 1e-5, numbers=0.28, places=True, clutter=True),
        # Numbers stay the hardest to read: a mosaic shows twenty times the digits of a scene at a fraction of its cost.
        Phase("legible", 320, 16, MOSTLY_THIRD, 8e-4, 1e-5, numbers=0.32, places=True, clutter=True, mosaics=24),
        # Few steps over all tokens made it forget how to count among them.
        Phase(
            "last", 160, 16, THIRD_OR_ALL, 8e-4, 1e-5, numbers=0.25, easy_vqa=0.2, places=True, clutter=True, mosaics=8
        ),
    )


class ExampleStream:
    """An endless stream of examples of one split, seeded by the phase's name, so that a phase can be repeated alone."""

    def __init__(self, seed: int, name: str, split: Split) -> None:
        self._rng = numpy_rng(seed, "pretrain", name, split)
        self._glyphs = load_glyphs(split)
        self._easy_vqa = load_easy_vqa(split)

    def mosaics(self, count: int) -> list[Example]:
        """``count`` dense mosaics."""
        return [mosaic_example(self._glyphs, self._rng) for _ in range(count)]

    def kept_count(self, phase: Phase) -> int:
        """How many visual tokens the next step shows."""
        return phase.kept[int(self._rng.integers(len(phase.kept)))]

    def questions(self, count: int, phase: Phase) -> list[Example]:
        """``count`` images of all tasks, in the phase's shares, with their questions."""
        examples: list[Example] = []
        while len(examples) < count:
            draw = self._rng.random()
            if draw < phase.easy_vqa:
                index = int(self._rng.integers(self._easy_vqa.image_count))
                example = easy_vqa_example(self._easy_vqa, index, TASKS, self._rng, phase.picture_pixels)
            else:
                mix = None if draw < phase.easy_vqa + phase.numbers else phase.mix
                make = cluttered_example if phase.clutter else scene_example
                example = make(TASKS, self._glyphs, self._rng, mix)
            if example.questions:
                examples.append(example)
        return examples


def keep_evidence(evidence: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices of all evidence patches and of random others up to ``count``, ascending, ``int64 [b, count]``."""
    scores = torch.rand(evidence.shape, generator=generator) + evidence
    return scores.topk(count, dim=1).indices.sort(dim=1).values


def optimizers(model: nn.Module, heads: nn.Module, vision_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for matrices, AdamW for the rest; the vision tower at ``vision_rate`` of the learning rate."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in [*model.named_parameters(), *heads.named_parameters(prefix="heads")]:
        matrix = parameter.ndim == 2 and "embed" not in name and not name.startswith("heads")
        rate = vision_rate if "vision_tower" in name else 1.0
        groups.setdefault((matrix, rate), []).append(parameter)
    found: list[torch.optim.Optimizer] = []
    for (matrix, rate), parameters in groups.items():
        if matrix:
            optimizer: torch.optim.Optimizer = torch.optim.Muon(
                parameters, lr=1.0, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
            )
        else:
            optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0)
        optimizer.param_groups[0]["rate"] = rate
        found.append(optimizer)
    return found


def learning_rate(phase: Phase, step: int) -> float:
    """Warm-up over 100 steps, then linear from peak to final."""
    return min(1.0, (step + 1) / 100) * (phase.peak + (phase.final - phase.peak) * step / phase.steps)


def pretrain(recipe: PretrainRecipe, output_dir: Path) -> None:
    """Run the phases; each leaves ``NAME.safetensors`` and is skipped where that file exists already.

    The last one's weights become ``checkpoint``, the directory that the package ships.
    """
    seed_everything(recipe.seed)
    output_dir.mkdir(parents=True, exist_ok=True)
    model, heads = fresh_mini(), PatchHeads()
    prepare_for_training(model)
    for phase in recipe.phases:
        path = output_dir / f"{phase.name}.safetensors"
        if path.exists():
            _load(model, heads, path)
            continue
        run_phase(model, heads, phase, recipe.seed)
        save_file(_state(model, heads), path)
        print(f"wrote {path}", flush=True)
    write_checkpoint(path, output_dir / "checkpoint")


def _state(model: nn.Module, heads: nn.Module) -> dict[str, Tensor]:
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    return tensors | {f"heads.{name}": tensor for name, tensor in heads.state_dict().items()}


def _load(model: nn.Module, heads: nn.Module, path: Path) -> None:
    tensors = load_file(path)
    heads.load_state_dict({n.removeprefix("heads."): t for n, t in tensors.items() if n.startswith("heads.")})
    model.load_state_dict({n: t for n, t in tensors.items() if not n.startswith("heads.")}, strict=False)


def run_phase(model: LlavaForConditionalGeneration, heads: PatchHeads, phase: Phase, seed: int) -> None:
    """Optimise for ``phase.steps`` steps; every ``REPORT_EVERY`` print loss and held-out accuracy."""
    stream, held_out = ExampleStream(seed, phase.name, "train"), ExampleStream(seed, phase.name, "held-out")
    generator = torch_generator(seed, "pretrain", phase.name)
    optimizing = optimizers(model, heads, phase.vision_rate)
    begin = time.perf_counter()
    totals: list[float] = []
    for step in range(phase.steps):
        for optimizer in optimizing:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(phase, step) * group["rate"]
        loss = _loss(model, heads, phase, stream, generator)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without annotations
        nn.utils.clip_grad_norm_([*model.parameters(), *heads.parameters()], 1.0)
        for optimizer in optimizing:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        totals.append(loss.item())
        if (step + 1) % REPORT_EVERY == 0:
            accuracy = held_out_accuracy(model, heads, phase, held_out, generator)
            elapsed, mean = time.perf_counter() - begin, math.fsum(totals[-REPORT_EVERY:]) / REPORT_EVERY
            print(f"{phase.name} step {step + 1} {elapsed:.0f}s loss {mean:.3f} {accuracy}", flush=True)


def _loss(
    model: LlavaForConditionalGeneration,
    heads: PatchHeads,
    phase: Phase,
    stream: ExampleStream,
    generator: torch.Generator,
) -> Tensor:
    if not phase.kept:
        patches = patch_batch(stream.mosaics(phase.images))
        with torch.autocast("cpu", torch.bfloat16):
            return heads.loss(vision_features(model, patches.images), patches)[0]
    batch = packed_batch(stream.questions(phase.images, phase), build_tokenizer())
    with torch.autocast("cpu", torch.bfloat16):
        features = vision_features(model, batch.patches.images)
        kept = keep_evidence(batch.evidence, stream.kept_count(phase), generator)
        answers = answer_questions(model, heads, prefix_tokens(), features, batch, kept)
        auxiliary = answers.hints + answers.alignment + heads.loss(features, batch.patches)[0]
        if phase.places:
            auxiliary = auxiliary + answers.places
        if phase.mosaics:
            mosaics = patch_batch(stream.mosaics(phase.mosaics))
            auxiliary = auxiliary + heads.loss(vision_features(model, mosaics.images), mosaics)[0]
        return answers.loss + AUXILIARY_WEIGHT * auxiliary


def prefix_tokens() -> Tensor:
    """The tokens before the image."""
    return torch.tensor(build_tokenizer().encode(f"{BEGIN}user:", add_special_tokens=False).ids)


@torch.no_grad()
def held_out_accuracy(
    model: LlavaForConditionalGeneration,
    heads: PatchHeads,
    phase: Phase,
    stream: ExampleStream,
    generator: torch.Generator,
) -> str:
    """Patch accuracy and, in phases with questions, the accuracy of each task, on held-out images."""
    with torch.autocast("cpu", torch.bfloat16):
        if not phase.kept:
            patches = patch_batch(stream.mosaics(phase.images))
            return f"patches {float(heads.loss(vision_features(model, patches.images), patches)[1]):.3f}"
        right: dict[int, list[bool]] = {}
        seen: list[float] = []
        for batch in _batches(stream, phase, 2, 32):
            features = vision_features(model, batch.patches.images)
            kept = keep_evidence(batch.evidence, phase.kept[-1], generator)
            answers = answer_questions(model, heads, prefix_tokens(), features, batch, kept)
            seen.append(float(heads.loss(features, batch.patches)[1]))
            for task, correct in zip(answers.tasks.tolist(), answers.right.tolist(), strict=True):
                right.setdefault(task, []).append(correct)
    per_task = " ".join(f"{TASKS[task]} {np.mean(marks):.2f}" for task, marks in sorted(right.items()))
    return f"patches {np.mean(seen):.3f} {per_task}"


def _batches(stream: ExampleStream, phase: Phase, count: int, images: int) -> Iterator[PackedBatch]:
    for _ in range(count):
        yield packed_batch(stream.questions(images, phase), build_tokenizer())
