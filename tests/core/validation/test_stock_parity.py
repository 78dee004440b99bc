"""The stock model's own answers, by whatever kind of chat template."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.tiny_llava import IMAGE_PIXELS, tiny_adapter
from toprl_export.models.reference import ReferenceRunner
from toprl_export.tasks.task import Sample
from toprl_export.validation.stock_parity import _stock_answer

TEXT_ALONE = "{{ bos_token }}{% for message in messages %}{{ message.content }} {% endfor %}assistant:"


@pytest.mark.parametrize("template", [None, TEXT_ALONE])
def test_the_walk_agrees_and_another_question_does_not(template: str | None):
    adapter = tiny_adapter()
    if template is not None:
        adapter.frontend.processor.chat_template = template
        assert adapter.frontend.takes_text
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGE_PIXELS, IMAGE_PIXELS, 3), dtype=np.uint8)
    sample = Sample(pixels, "what colour is the 7?", "red", None, "one")
    logits, tokens = _stock_answer(adapter, sample, 6)
    runner = ReferenceRunner(adapter)
    visual = runner.encode_image(adapter.fixed_frontend.pixels([pixels]))
    ours = runner.generate(adapter.frontend.tokens([sample.question]), visual, 6)
    torch.testing.assert_close(ours.prefill.logits, torch.from_numpy(logits), atol=1e-4, rtol=1e-4)
    assert ours.tokens == [tokens]
    other = runner.generate(adapter.frontend.tokens(["is there a star?"]), visual, 6)
    assert float((other.prefill.logits - torch.from_numpy(logits)).abs().max()) > 1e-2
