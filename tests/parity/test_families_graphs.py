"""Graphs of families whose pictures have different numbers of visual tokens, against PyTorch at sizes not traced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image

from tests.support.family_checkpoints import FAMILIES
from toprl_engines.feeds import token_feeds
from toprl_engines.graph.export import ExportJob, export_graphs
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.load import load_model
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.models.walk import Prefill
from toprl_export.pruning.actor import Actor, ActorConfig, StackedActors
from toprl_export.pruning.scorer import Scorer
from toprl_export.runtime.layout import Pictures, TokenBatch

QUESTIONS = ("what colour is the 7?", "is there a star in the image? how many circles are there?", "what is it?")
SIZES = ((90, 40), (56, 70), (41, 125), (40, 40))
STAGES, SHARES = (0, 2), (0.7, 0.3)
TOLERANCE = 1e-4
"""As a share of the largest number there."""


@dataclass
class Exported:
    """The graphs of one tiny checkpoint, and what they were made of."""

    adapter: LVLMAdapter
    actor: Scorer
    directory: Path

    def run(self, graph: str, feeds: dict[str, Any]) -> dict[str, np.ndarray]:
        session = ort.InferenceSession(self.directory / f"{graph}.onnx", providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(None, feeds), strict=True))


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    place = tmp_path_factory.mktemp(request.param)
    adapter = load_model(str(FAMILIES[request.param](place / "model")))
    torch.manual_seed(3)
    actor = Actor(ActorConfig(input_size=adapter.shape.hidden, stages=len(STAGES)))
    (place / "graphs").mkdir()
    export_graphs(ExportJob(adapter, StackedActors([actor]), STAGES), place / "graphs")
    return Exported(adapter, actor, place / "graphs")


def pictures_of(adapter: LVLMAdapter, sizes: Sequence[tuple[int, int]]) -> Pictures:
    drawn = [np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8) for seed, (w, h) in enumerate(sizes)]
    return adapter.frontend.pictures([Image.fromarray(pixels) for pixels in drawn])


def counts_of(tokens: TokenBatch) -> np.ndarray:
    n = np.take_along_axis(tokens.attention_mask, tokens.visual_index, axis=1).sum(1)  # [b]
    return np.maximum(1, np.ceil(n[:, None] * np.array(SHARES))).astype(np.int64)  # [b, T]


def close(ours: np.ndarray, theirs: torch.Tensor) -> bool:
    return float(np.abs(ours - theirs.numpy()).max()) <= TOLERANCE * float(theirs.abs().max())


def encoded(exported: Exported, pictures: Pictures) -> np.ndarray:
    return exported.run("vision", dict(pictures.arrays))["visual"]


@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES[1:3], SIZES])
def test_vision(exported: Exported, sizes: Sequence[tuple[int, int]]):
    pictures = pictures_of(exported.adapter, sizes)
    expected = ReferenceRunner(exported.adapter).encode(pictures)
    assert close(encoded(exported, pictures), expected)
    changed = {name: -a if name == "pixel_values" else a for name, a in pictures.arrays.items()}
    assert not close(exported.run("vision", changed)["visual"], expected)  # the negative control


@pytest.mark.parametrize(("sizes", "shown"), [(SIZES[:1], [[0]]), (SIZES, [[0, 3], [1], [2]]), (SIZES[:2], [[1], []])])
def test_pruned_prefill_and_decode(exported: Exported, sizes: Sequence[tuple[int, int]], shown: list[list[int]]):
    runner = ReferenceRunner(exported.adapter)
    pictures = pictures_of(exported.adapter, sizes)
    tokens = exported.adapter.frontend.tokens(QUESTIONS[: len(shown)], pictures=pictures, shown=shown)
    counts, visual = counts_of(tokens), runner.encode(pictures)
    expected = runner.prefill(tokens, visual, Pruning(STAGES, torch.from_numpy(counts), exported.actor))
    feeds = {**token_feeds(tokens), "visual": visual.numpy(), "keep_counts": counts, "agent_index": np.asarray(0)}
    found = exported.run("prefill", feeds)
    check(found, expected)
    others = np.maximum(1, counts - 2)
    assert not close(exported.run("prefill", {**feeds, "keep_counts": others})["logits"], expected.logits)

    longer = runner.generate(tokens, visual, 2, Pruning(STAGES, torch.from_numpy(counts), exported.actor))
    caches = {name: array for name, array in found.items() if name.startswith(("key_", "value_"))}
    masks = {
        name: np.pad(array, ((0, 0), (0, 1)), constant_values=True) for name, array in found.items() if "mask" in name
    }
    token = found["logits"].argmax(-1)[:, None]
    step = exported.run("decode", {"token": token, "position": tokens.next_position[:, None], **caches, **masks})
    chosen = step["logits"].argmax(-1)
    for row, answer in enumerate(longer.tokens):
        if len(answer) == 2:
            assert [token[row, 0], chosen[row]] == answer


def test_unpruned_prefill(exported: Exported):
    runner = ReferenceRunner(exported.adapter)
    pictures = pictures_of(exported.adapter, SIZES[:2])
    tokens = exported.adapter.frontend.tokens(QUESTIONS[:2], pictures=pictures)
    visual = runner.encode(pictures)
    found = exported.run("prefill_unpruned", {**token_feeds(tokens), "visual": visual.numpy()})
    check(found, runner.prefill(tokens, visual))


def check(found: dict[str, np.ndarray], expected: Prefill) -> None:
    assert close(found["logits"], expected.logits)
    for stage, kept in enumerate(expected.kept):
        assert np.array_equal(found[f"kept_{stage}"], kept.numpy())
    for group, mask in enumerate(expected.masks):
        assert np.array_equal(found[f"mask_{group}"], mask.numpy())
    for layer, (keys, values) in enumerate(zip(expected.keys, expected.values, strict=True)):
        assert close(found[f"key_{layer}"], keys)
        assert close(found[f"value_{layer}"], values)
