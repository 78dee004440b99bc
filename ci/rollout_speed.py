"""Rollouts per second of the trainer against a loop over single images, questions and masks; both in one run.

    python ci/rollout_speed.py [--task mini-colour] [--rounds 5] [--threads 1] [--device cpu]

A rollout is one mask of one image, all of the image's questions answered. The trainer's figure is that of its own code:
images × masks in one batch, all questions of an image in one row, the unpruned model's answers and the images'
embeddings computed once and used as often as the recipe uses them. The loop treats one image, one question and one mask
at a time through Hugging Face's own forward, batch 1: unpruned, then pruned by dropping the same tokens before the
same layers. It replays the trainer's masks, so it has neither scores to compute nor draws to make, and its answers'
log-probabilities must be the trainer's. Its second form keeps what can be kept: the images' features and the unpruned
answers.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from toprl_export.errors import UserError
from toprl_export.models.load import load_model
from toprl_export.seeding import torch_generator
from toprl_export.tasks.registry import TASKS
from toprl_export.tasks.task import Question
from toprl_export.trainer import DEFAULT_BUDGETS_KEPT, TrainRequest
from toprl_trainers.rl.gumbel import temperature_at
from toprl_trainers.toprl.data import BlockSource, ImageBlock, looks_at_question, model_precision
from toprl_trainers.toprl.learn import TrainingState
from toprl_trainers.toprl.run import Run
from toprl_trainers.toprl.update import ImageDraws, Rollouts, SamplingPolicy, collect, ppo_update

GOAL = 20
TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-2}
"""Of a rollout's quality, a mean ratio of probabilities, by what trainer and loop compute in."""
Kept = tuple[Tensor, ...]
"""Per stage which of the n visual tokens go on, ``int64 [k_t]``."""


@dataclass(frozen=True)
class Round:
    """Seconds a rollout: of the trainer, of the trainer with its updates, of the loop, and of the thrifty loop."""

    trainer: float
    trainer_updating: float
    loop: float
    thrifty_loop: float


class StockLoop:
    """One image, one question and one mask at a time through the model's own forward."""

    def __init__(self, run: Run) -> None:
        self._adapter = run.request.adapter
        self._layers = run.plan.stage_layers
        self._precision = run.config.precision

    @torch.no_grad()
    def answer(self, image: Tensor, question: Question, kept: Kept | None) -> float:
        """Log-probability of the gold answer.

        Args:
            image: ``pixel_values`` ``[1, 3, h, w]``, or the image's features ``[1, n, d]``.
            question: with its answer.
            kept: what to keep at each stage; None for no pruning.
        """
        adapter, device = self._adapter, self._adapter.device
        batch = adapter.frontend.tokens([question.text])
        answer = adapter.tokenizer.encode(question.answer, add_special_tokens=False).ids
        ids = torch.tensor([[*batch.input_ids[0].tolist(), *answer]], device=device)
        labels = torch.tensor([*answer, adapter.end_tokens[0]], device=device)
        visual = torch.from_numpy(batch.visual_index).to(device)
        inputs: dict[str, Any] = {"input_ids": ids, "pixel_values": image}
        if image.ndim == 3:
            embedded = adapter.model.get_input_embeddings()(ids)
            place = visual[..., None].expand(-1, -1, embedded.shape[-1])
            inputs = {"inputs_embeds": embedded.scatter(1, place, image.to(embedded.dtype))}
        with model_precision(adapter, self._precision), self._dropping(visual[0], ids.shape[1], kept):
            logits = adapter.model(**inputs, use_cache=False, logits_to_keep=len(labels)).logits[0]
        return float(logits.float().log_softmax(-1).gather(1, labels[:, None]).sum())

    @contextmanager
    def _dropping(self, visual: Tensor, length: int, kept: Kept | None) -> Iterator[None]:
        """Let Hugging Face's layers drop tokens: hooks that shorten what enters each layer from the first stage on."""
        place = torch.arange(length, device=visual.device)

        def hook(index: int) -> Callable[..., Any]:
            def shorten(module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
                nonlocal place
                del module
                (hidden,) = positional
                if kept is not None and index in self._layers:
                    survivors = visual[kept[self._layers.index(index)]]
                    stays = ~torch.isin(place, visual) | torch.isin(place, survivors)
                    hidden, place = hidden[:, stays], place[stays]
                if len(place) < length:
                    # Without padding Hugging Face's mask is None, or causal over the whole sequence.
                    named["position_embeddings"] = tuple(part[:, place] for part in named["position_embeddings"])
                    mask = named.get("attention_mask")
                    named["attention_mask"] = None if mask is None else mask[..., place, :][..., place]
                return (hidden,), named

            return shorten

        layers = [self._adapter.decoder.layer(index) for index in range(len(self._adapter.decoder))]
        handles = [layer.register_forward_pre_hook(hook(index), with_kwargs=True) for index, layer in enumerate(layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class SpeedBench:
    """What is measured: the trainer on one block of images after the other, and the loop on the same rollouts."""

    def __init__(self, run: Run, loop_images: int) -> None:
        self._run = run
        self._loop_images = loop_images
        self._loop = StockLoop(run)
        self._adapter = run.request.adapter
        config = run.config
        self._state = TrainingState.fresh(
            run.actor_config, config.learning_rate, run.request.seed, self._adapter.device
        )
        self.visits = max(1, config.updates * config.images_per_update // config.images)
        """How often the recipe uses an image."""

    def round(self, number: int) -> Round:
        """Measure once.

        Raises:
            UserError: trainer and loop disagree about the answers.
        """
        run, config = self._run, self._run.config
        source = BlockSource(
            self._adapter, run.request.task, run.request.seed, number * config.images_per_update,
            config.images_per_update, config.images_per_update, config.precision,
        )  # fmt: skip
        temperature = temperature_at(0.5, config.temperature_start, config.temperature_end)
        _, making = self._timed(lambda: source[0])
        (block, rollouts), playing = self._timed(lambda: self._play(source, number, temperature))
        shuffle = torch_generator(run.request.seed, "rollout-speed", "shuffle", number)
        _, updating = self._timed(
            lambda: ppo_update(
                self._state.actor, self._state.critic, self._state.optimizer, rollouts, temperature, config, shuffle
            )
        )
        played = len(rollouts.weights)
        whole, thrifty = self._loops(block, rollouts, number)
        looped = self._loop_images * config.rollouts_per_image
        ours = making / self.visits + playing
        return Round(ours / played, (ours + updating) / played, whole / looped, thrifty / looped)

    def _play(self, source: BlockSource, number: int, temperature: float) -> tuple[ImageBlock, Rollouts]:
        run, config = self._run, self._run.config
        block = source.for_update(0, looks_at_question(self._state.actor.needs))
        draws = ImageDraws(
            run.request.seed, ("rollout-speed", number), range(config.images_per_update), config.rollouts_per_image,
            self._adapter.visual_tokens,
        )  # fmt: skip
        policy = SamplingPolicy(
            self._state.actor, run.trained.keep_counts, temperature, None, config.rollouts_per_image, draws
        )
        rollouts = collect(self._adapter, block, policy, self._state.critic, run.plan.stage_layers, config)
        return block, rollouts

    def _loops(self, block: ImageBlock, rollouts: Rollouts, number: int) -> tuple[float, float]:
        """Seconds of the loop and of the thrifty loop over the first images of the block."""
        run, task = self._run, self._run.request.task
        first = number * run.config.images_per_update
        groups = [task.question_group("train", run.request.seed, first + image) for image in range(self._loop_images)]
        pixels = torch.from_numpy(self._adapter.fixed_frontend.pixels([group.image for group in groups]))
        pixels = pixels.to(self._adapter.device)
        with torch.no_grad(), model_precision(self._adapter, run.config.precision):
            features = self._adapter.encode_image(pixels).float()
        masks = [kept_tokens(rollouts, row) for row in range(self._loop_images * run.config.rollouts_per_image)]
        questions = block.questions[: self._loop_images]
        found, whole = self._timed(lambda: self._walk_loop(pixels, questions, masks, known=None))
        known = [[full for full, _ in image[0]] for image in found]
        again, thrifty = self._timed(lambda: self._walk_loop(features, questions, masks, known))
        for image, answers in enumerate(found):
            self._check(image, answers, again[image], rollouts)
        return whole, thrifty

    def _walk_loop(
        self, images: Tensor, questions: Sequence[Sequence[Question]], masks: Sequence[Kept], known: Any
    ) -> list[list[list[tuple[float, float]]]]:
        """Per image, mask and question the answer's log-probability unpruned (from ``known`` if given) and pruned."""
        group = self._run.config.rollouts_per_image
        found = []
        for number, of_image in enumerate(questions):
            image = images[number : number + 1]
            per_mask = []
            for kept in masks[number * group : (number + 1) * group]:
                per_question = []
                for place, question in enumerate(of_image):
                    full = known[number][place] if known else self._loop.answer(image, question, None)
                    per_question.append((full, self._loop.answer(image, question, kept)))
                per_mask.append(per_question)
            found.append(per_mask)
        return found

    def _check(self, image: int, answers: Any, again: Any, rollouts: Rollouts) -> None:
        """The loop's dense quality of an image whose questions the model all answers must be the trainer's."""
        group = self._run.config.rollouts_per_image
        rows = range(image * group, (image + 1) * group)
        if float(rollouts.weights[rows.start]) < 1:
            return
        for row, per_question, repeated in zip(rows, answers, again, strict=True):
            for pairs in (per_question, repeated):
                ratios = torch.tensor([min(0.0, pruned - full) for full, pruned in pairs]).exp()
                if abs(float(ratios.mean()) - float(rollouts.quality[row])) > TOLERANCE[self._run.config.precision]:
                    raise UserError(
                        f"trainer and loop disagree on rollout {row}: quality {rollouts.quality[row]:.4f} against "
                        f"{float(ratios.mean()):.4f}; this is a bug in one of them"
                    )

    def _timed(self, action: Callable[[], Any]) -> tuple[Any, float]:
        self._wait()
        begin = time.perf_counter()
        found = action()
        self._wait()
        return found, time.perf_counter() - begin

    def _wait(self) -> None:
        if self._adapter.device.type == "cuda":
            torch.cuda.synchronize(self._adapter.device)


def kept_tokens(rollouts: Rollouts, row: int) -> Kept:
    """Which visual tokens a rollout kept at each stage."""
    records = rollouts.stages
    return tuple(record.inputs.origin[row // record.repeats][record.kept[row]] for record in records)


def report(run: Run, rounds: Sequence[Round], visits: int) -> str:
    """The figures as Markdown."""
    config, adapter = run.config, run.request.adapter
    loops = {"loop": "everything anew", "thrifty_loop": "features and unpruned answers kept"}
    lines = [
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, {adapter.device}, "
        f"{torch.get_num_threads()} threads, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {version('transformers')}, {config.precision}",
        f"{adapter.model_id}, {run.request.task.name}: {config.images_per_update} images × {config.rollouts_per_image} "
        f"masks, keep counts {run.trained.keep_counts} of {adapter.visual_tokens}, images visited {visits} times; "
        f"medians of {len(rounds)} rounds after a warm-up",
        "",
        "| | rollouts per second | trainer is faster by | with its PPO updates by |",
        "|---|---|---|---|",
        f"| trainer | {1 / median(each.trainer for each in rounds):.1f} | | |",
        f"| trainer with its PPO updates | {1 / median(each.trainer_updating for each in rounds):.1f} | | |",
    ]
    for name, what in loops.items():
        rate = 1 / median(getattr(each, name) for each in rounds)
        gains = [
            median(getattr(each, name) / getattr(each, ours) for each in rounds)
            for ours in ("trainer", "trainer_updating")
        ]
        lines.append(f"| loop, {what} | {rate:.2f} | {gains[0]:.1f}× | {gains[1]:.1f}× |")
    ratio = median(each.loop / each.trainer for each in rounds)
    lines += ["", f"goal: {GOAL}×, {'reached' if ratio >= GOAL else 'not reached'} ({ratio:.1f}×)"]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--task", default="mini-colour")
    parser.add_argument("--recipe", default="toprl")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--images-per-update", type=int, help="instead of the recipe's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loop-images", type=int, default=2, help="images of each round that the loop treats")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    adapter = load_model(arguments.model, arguments.device)
    task = TASKS.get(arguments.task)
    request = TrainRequest(adapter, task, DEFAULT_BUDGETS_KEPT, Path("unused"), recipe=arguments.recipe)
    run = Run.of(request)
    if arguments.precision != "auto":
        run = replace(run, config=replace(run.config, precision=arguments.precision))
    if arguments.images_per_update:
        run = replace(run, config=replace(run.config, images_per_update=arguments.images_per_update))
    bench = SpeedBench(run, arguments.loop_images)
    bench.round(0)
    print(report(run, [bench.round(1 + number) for number in range(arguments.rounds)], bench.visits))


if __name__ == "__main__":
    main()
