"""Pruning where pictures have different numbers of visual tokens: rows of one batch keep shares of theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.family_checkpoints import FAMILIES
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.load import load_model
from toprl_export.models.reference import Pruning, ReferenceRunner, to_tensors
from toprl_export.models.walk import embed_tokens
from toprl_export.pruning.actor import Actor, ActorConfig
from toprl_export.pruning.scorer import Scorer, make_scorer

QUESTIONS = ("what colour is the 7?", "is there a star in the image? how many circles are there?")
SIZES = ((90, 40), (56, 70))
STAGES, SHARES = (0, 1), (0.6, 0.3)


@pytest.fixture(scope="module", params=FAMILIES)
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LVLMAdapter:
    return load_model(str(FAMILIES[request.param](tmp_path_factory.mktemp(request.param))))


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    drawn = [np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8) for seed, (w, h) in enumerate(SIZES)]
    return [Image.fromarray(pixels) for pixels in drawn]


def scorer(name: str, adapter: LVLMAdapter) -> Scorer:
    if name != "actor":
        return make_scorer(name, 0)
    torch.manual_seed(3)
    return Actor(ActorConfig(input_size=adapter.shape.hidden, stages=len(STAGES)))


def counts_of(n: Sequence[int]) -> torch.Tensor:
    return torch.tensor([[max(1, math.ceil(share * count)) for share in SHARES] for count in n])


@pytest.mark.parametrize("name", ["actor", "fastv", "sparsevlm", "divprune", "cdpruner", "dart"])
def test_rows_of_one_batch_are_pruned_as_each_alone(adapter: LVLMAdapter, images: list[Image.Image], name: str):
    if (adapter.family, name) == ("llava_next", "cdpruner"):
        pytest.skip("newlines are all alike, and rounding decides which of them CDPruner takes first")
    runner, chosen = ReferenceRunner(adapter), scorer(name, adapter)
    pictures = adapter.frontend.pictures(images)
    tokens = adapter.frontend.tokens(QUESTIONS, pictures=pictures)
    n = [len(each.rows) for each in pictures.each]
    counts = counts_of(n)
    visual = runner.encode(pictures)
    together = runner.generate(tokens, visual, 12, Pruning(STAGES, counts, chosen))
    for row, question in enumerate(QUESTIONS):
        pictures = adapter.frontend.pictures(images[row : row + 1])
        alone = adapter.frontend.tokens([question], pictures=pictures)
        pruning = Pruning(STAGES, tuple(counts[row].tolist()), chosen)  # the plain selection of a single row
        expected = runner.generate(alone, runner.encode(pictures), 12, pruning)
        pads = max(n) - n[row]
        for stage, kept in enumerate(expected.prefill.kept):
            taken = together.prefill.kept[stage][row]
            lived = together.prefill.masks[stage][row, : len(taken)]
            assert (taken[lived] - pads).tolist() == kept[0].tolist()
        logits, own = together.prefill.logits[row], expected.prefill.logits[0]
        assert float((logits - own).abs().max()) <= 1e-4 * float(own.abs().max())
        assert together.tokens[row] == expected.tokens[0]


def test_one_stage_at_the_input_is_hugging_faces_decoder_without_the_tokens(
    adapter: LVLMAdapter, images: list[Image.Image]
):
    """Kept tokens with their own positions, given to the model's own text model."""
    runner = ReferenceRunner(adapter)
    pictures = adapter.frontend.pictures(images[:1])
    tokens = adapter.frontend.tokens(QUESTIONS[:1], pictures=pictures)
    visual = runner.encode(pictures)
    pruned = runner.prefill(tokens, visual, Pruning((0,), (5,), make_scorer("random", 0)))
    tensors = to_tensors(tokens, adapter.device)
    sequence = embed_tokens(adapter.decoder, tensors, visual)
    slots = torch.cat([sequence.visual_slot[:, pruned.kept[0][0]], sequence.text_slot], dim=1)  # [1, 5 + t]
    states = torch.cat([sequence.visual[:, pruned.kept[0][0]], sequence.text], dim=1)
    order = slots[0].argsort()
    positions = tensors.position_ids[..., slots[0, order]]
    # Without a mask Hugging Face takes positions with gaps for several packed prompts.
    given = {"inputs_embeds": states[:, order], "attention_mask": torch.ones_like(order)[None], "use_cache": False}
    language_model = adapter.model.model.language_model
    with torch.inference_mode():
        hidden = language_model(**given, position_ids=positions)[0]
        own = adapter.model.lm_head(hidden[:, -1])
        renumbered = language_model(**given)[0]
    assert float((pruned.logits - own).abs().max()) <= 1e-4 * float(own.abs().max())
    # The negative control: tokens counted anew are something else.
    assert float((hidden - renumbered).abs().max()) > 1e-2 * float(hidden.abs().max())
