import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.stage_inputs import random_inputs
from tests.support.tiny_llava import tiny_adapter, tiny_pixels, tiny_tokens
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.pruning.baselines.attention import VisionZipScorer
from toprl_export.pruning.scorer import ScorerNeeds, StageInputs
from toprl_export.pruning.select import select


class Saliency(nn.Module):
    def __init__(self, adapter: LVLMAdapter) -> None:
        super().__init__()
        self.model: nn.Module = adapter.model
        self._adapter = adapter

    def forward(self, pixels: Tensor) -> Tensor:
        return self._adapter.vision_saliency(pixels)


def test_the_patches_that_the_tower_attends_to_stay_at_every_stage():
    runner = ReferenceRunner(tiny_adapter())
    pixels = tiny_pixels(2)
    saliency = runner.saliency(pixels.numpy())
    visual = runner.encode_image(pixels.numpy())
    pruning = Pruning((0, 2), (12, 5), VisionZipScorer())
    kept = runner.prefill(tiny_tokens(runner.adapter, 2), visual, pruning, saliency=saliency).kept
    assert [rows.tolist() for rows in kept] == [select(saliency, 12).tolist(), select(saliency, 5).tolist()]
    assert kept[0][0].tolist() != kept[0][1].tolist()


def test_it_asks_for_the_saliency():
    assert VisionZipScorer.needs == ScorerNeeds(saliency=True)
    inputs = random_inputs(0)
    assert VisionZipScorer()(inputs) is inputs.saliency
    with pytest.raises(ValueError, match="no saliency"):
        VisionZipScorer()(StageInputs(0, torch.zeros(1, 5, 2), None, torch.arange(5)[None]))


def test_the_saliency_exports(as_onnx):
    module = Saliency(tiny_adapter())
    run = as_onnx(module, (tiny_pixels(2),), ({0: torch.export.Dim("batch")},))
    pixels = tiny_pixels(3, seed=5)
    (saliency,) = run(pixels)
    assert saliency.dtype == np.float32
    np.testing.assert_allclose(saliency, module(pixels).numpy(), atol=1e-5)
