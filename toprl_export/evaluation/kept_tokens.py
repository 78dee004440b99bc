"""Which visual tokens are kept for a question, by a bundle's engine or by an agent in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toprl_export.errors import UserError
from toprl_export.evaluation.machine import torch_threads
from toprl_export.evaluation.questions import SPLIT
from toprl_export.runtime.pictures import ImageInput


@dataclass(frozen=True, eq=False)
class KeptTokens:
    """What one request kept; `toprl_export.evaluation.overlay` draws it.

    Attributes:
        image: the picture as the model sees it, ``uint8 [h, w, 3]``.
        visual_tokens: n, row by row from the upper left.
        kept: per stage, indices of the kept tokens within 0 to n-1, ``int64 [k_t]``.
        sites: per stage, where it prunes ("decoder:2").
        question: the prompt.
        answer: the model's, from these tokens alone.
        expected: the correct answer where it is known.
    """

    image: NDArray[np.uint8]
    visual_tokens: int
    kept: tuple[NDArray[np.int64], ...]
    sites: tuple[str, ...]
    question: str
    answer: str
    expected: str | None = None


@dataclass(frozen=True)
class ImageQuestion:
    """One question about one image, and the correct answer where it is known."""

    image: ImageInput
    question: str
    expected: str | None = None


@dataclass(frozen=True)
class TaskQuestion:
    """Held-out question ``index`` of a task's draw by ``seed``; without a task, of the agent's or bundle's own."""

    task: str | None
    index: int
    seed: int

    def resolve(self, default: str) -> ImageQuestion:
        """The question.

        Raises:
            UserError: the task is unknown or has no such question.
        """
        from toprl_export.tasks.registry import TASKS

        task = TASKS.get(self.task or default)
        count = task.question_count(SPLIT)
        if count is not None and self.index >= count:
            raise UserError(f"{task.name} has {count} held-out questions: choose --index from 0 to {count - 1}")
        sample = task.sample(SPLIT, self.seed, self.index)
        return ImageQuestion(sample.image, sample.question, sample.answer)


def kept_by_bundle(
    directory: Path,
    question: ImageQuestion | TaskQuestion,
    task: str | None,
    budget_kept: int | None,
    threads: int | None,
) -> KeptTokens:
    """Answer a question by a bundle's engine and record the tokens it keeps.

    Args:
        directory: the bundle.
        question: the prompt and its image.
        task: whose agent prunes; the first one's by default. A baseline prunes the same for every task.
        budget_kept: one of the bundle's budgets, or n to keep all; by default its largest.
        threads: CPU threads of the engine.

    Raises:
        UserError: the bundle does not verify, has no such task or budget, or the question is too long.
    """
    # No torch: a bundle is looked at where only its engine is installed.
    from toprl_export.api import load
    from toprl_export.runtime.generation import generate

    with load(directory, threads) as loaded:
        bundle = loaded.bundle
        found = _resolve(question, bundle.task(task))
        request = loaded.request(found.image, found.question, task, budget_kept)
        answered = generate(loaded.session, loaded.frontend.tokenizer, request)
        shown = loaded.frontend.shown(found.image)
    manifest = bundle.manifest
    return KeptTokens(
        image=shown,
        visual_tokens=manifest.model.visual_tokens,
        kept=tuple(kept[0] for kept in answered.kept),
        sites=tuple(str(stage.site) for stage in manifest.plan.stages),
        question=found.question,
        answer=answered.answers[0],
        expected=found.expected,
    )


def kept_by_agent(
    directory: Path,
    question: ImageQuestion | TaskQuestion,
    budget_kept: int | None,
    threads: int | None,
    model: str | None = None,
) -> KeptTokens:
    """Answer a question in PyTorch by the model that an agent was trained on.

    Args:
        directory: the agent.
        question: see `kept_by_bundle`, as for the next two.
        budget_kept: average visual tokens kept.
        threads: of the CPU.
        model: where the agent's model is, by default where the agent says.

    Raises:
        UserError: the directory holds no agent, its model's weights have changed, it has no such budget, or the
            question is too long.
    """
    from toprl_export.agent import load_agent
    from toprl_export.models.load import load_model
    from toprl_export.models.reference import Pruning, ReferenceRunner
    from toprl_export.runtime.answer_length import DEFAULT_NEW_TOKENS, prompt_room

    agent = load_agent(directory)
    plan = agent.record.plan
    budget = max(schedule.budget_kept for schedule in plan.schedules) if budget_kept is None else budget_kept
    if budget == plan.visual_tokens:  # no pruning, as `Bundle.keep_counts` has it
        pruning = Pruning(plan.stage_layers, (plan.visual_tokens,) * len(plan.stages), agent.actor)
    else:
        pruning = Pruning.from_plan(plan, budget, agent.actor)
    found = _resolve(question, agent.record.task)
    with torch_threads(threads):
        adapter = load_model(model or agent.record.model_id)
        agent.check_fits(adapter)
        pixels = adapter.fixed_frontend.pixels([found.image])
        room = prompt_room(adapter.max_length, adapter.visual_tokens)
        tokens = adapter.frontend.tokens([found.question], room)
        runner = ReferenceRunner(adapter)
        answered = runner.generate(tokens, runner.encode_image(pixels), DEFAULT_NEW_TOKENS, pruning)
    return KeptTokens(
        image=adapter.frontend.shown(found.image),
        visual_tokens=adapter.visual_tokens,
        kept=tuple(kept[0].cpu().numpy() for kept in answered.prefill.kept),
        sites=tuple(str(stage.site) for stage in plan.stages),
        question=found.question,
        answer=adapter.tokenizer.decode(answered.tokens[0]),
        expected=found.expected,
    )


def _resolve(question: ImageQuestion | TaskQuestion, default: str) -> ImageQuestion:
    return question if isinstance(question, ImageQuestion) else question.resolve(default)
