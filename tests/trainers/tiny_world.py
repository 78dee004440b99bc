"""A task that the tiny LLaVA can do and whose answer one patch holds: what the trainers' tests learn on.

The model's weights are random but for its head, a linear read-out fitted to the task, so that making it takes seconds.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support.tiny_llava import VISUAL_TOKENS, tiny_adapter
from toprl_export.models.llava import LlavaAdapter
from toprl_export.models.walk import Decision, TokenTensors, walk_prefill
from toprl_export.pruning.select import select
from toprl_export.seeding import numpy_rng
from toprl_export.tasks.task import Question, QuestionGroup, Sample, Task
from toprl_export.trainer import TrainRequest
from toprl_trainers.toprl.data import GoldAnswers, pack_questions

COLOURS = {"red": (250, 30, 30), "green": (30, 250, 30), "blue": (30, 30, 250), "teal brown": (30, 250, 250)}
QUESTIONS = ("what colour is it?", "which color is in the picture?")
RECIPE = """
method: toprl
settings:
  updates: {updates}
  images: 32
  images_per_update: 4
  rollouts_per_image: 8
  stage_layers: [0, 2]
  hidden_size: 16
  learning_rate: 0.005
  precision: float32
  validation_images: 48
  checkpoint_every: 2
  reward: {{quality_weight: {quality_weight}}}
"""


class PatchColour(Task):
    """One coloured patch on grey; two questions ask for its colour. One of the answers has two tokens."""

    def question_count(self, split):
        return None

    def sample(self, split, seed, index):
        group = self.question_group(split, seed, index)
        return Sample(group.image, group.questions[0].text, group.questions[0].answer, group.evidence, group.image_key)

    def question_group(self, split, seed, index):
        rng = numpy_rng(seed, self.name, split, index)
        image = 120 + rng.integers(0, 8, size=(40, 40, 3), dtype=np.uint8)
        place = int(rng.integers(VISUAL_TOKENS))
        row, column = divmod(place, 5)
        name = str(rng.choice(list(COLOURS)))
        image[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = COLOURS[name]
        evidence = np.zeros((5, 5), dtype=np.bool_)
        evidence[row, column] = True
        questions = tuple(Question(text, name) for text in QUESTIONS)
        return QuestionGroup(image, questions, evidence, f"{split}/{seed}/{index}")


TASK = PatchColour("patch-colour", "perception", "the colour of the one coloured patch", "numpy")


def fresh_adapter() -> LlavaAdapter:
    """The tiny model with a head of its own, untrained."""
    adapter = tiny_adapter(weight_scale=2.0)
    head = nn.Linear(adapter.shape.hidden, adapter.shape.vocabulary, bias=False)
    nn.init.zeros_(head.weight)
    adapter.model.lm_head = head
    adapter.decoder.head = head
    return adapter


def load_adapter(weights: Path) -> LlavaAdapter:
    """The tiny model with the head that `fit_head` wrote."""
    adapter = fresh_adapter()
    adapter.model.lm_head.load_state_dict(load_file(weights))
    adapter.model.requires_grad_(False)
    return adapter


def fit_head(weights: Path) -> None:
    """Fit the head to the task, with all tokens and with few of which one is the coloured patch."""
    adapter = fresh_adapter()
    head = adapter.model.lm_head
    batches = [
        answer_states(adapter, range(64 * count, 64 * count + 64), kept) for count, kept in enumerate((25, 4, 8, 14))
    ]
    states = torch.cat([found for found, _ in batches])
    labels = torch.cat([gold.label for _, gold in batches])
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(states), labels) + 1e-5 * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    save_file({"weight": head.weight.detach().contiguous()}, weights)


@torch.no_grad()
def answer_states(adapter: LlavaAdapter, images: range, kept: int) -> tuple[Tensor, GoldAnswers]:
    """States ``[a, d]`` that predict the answers' tokens when the coloured and ``kept - 1`` random tokens are kept."""
    groups = [TASK.question_group("train", 99, index) for index in images]
    tokens, gold = pack_questions(adapter, [group.questions for group in groups])
    visual = adapter.encode_image(torch.from_numpy(adapter.frontend.pixels([group.image for group in groups])))
    evidence = torch.from_numpy(np.stack([group.evidence.flatten() for group in groups]))
    scores = torch.rand(evidence.shape, generator=torch.Generator().manual_seed(images.start)) + evidence
    prefill = walk_prefill(adapter.decoder, tokens, visual, (0,), lambda _: Decision(select(scores, kept)))
    return prefill.hidden[:, -gold.question_tokens :][gold.image, gold.offset], gold


def repeated(tokens: TokenTensors, times: int) -> TokenTensors:
    """Every batch row ``times`` times in succession."""
    fields = {name: getattr(tokens, name) for name in tokens.__dataclass_fields__}
    return replace(tokens, **{name: x.repeat_interleave(times, dim=0) for name, x in fields.items() if x is not None})


def request(
    weights: Path, folder: Path, updates: int = 6, quality_weight: float = 1.0, **changes: object
) -> TrainRequest:
    """A run on the tiny world at 5 of 25 tokens kept; recipe and agent go to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(updates=updates, quality_weight=quality_weight))
    settings = {
        "adapter": load_adapter(weights),
        "task": TASK,
        "budgets_kept": (5,),
        "output_dir": folder / "agent",
        "recipe": str(recipe),
        "threads": 1,
    }
    return TrainRequest(**{**settings, **changes})
