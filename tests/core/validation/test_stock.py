"""The stock session: Hugging Face's own model, so it must equal its plain forward, padded and cached or not."""

from __future__ import annotations

import numpy as np
import torch

from tests.support.tiny_llava import tiny_adapter, tiny_pixels, tiny_tokens
from toprl_export.models.reference import ReferenceRunner
from toprl_export.runtime.session import PrefillRequest
from toprl_export.validation.stock import StockSession


def test_prefill_and_decode_equal_the_plain_forward():
    adapter = tiny_adapter()
    session, pixels, tokens = StockSession(adapter), tiny_pixels(3), tiny_tokens(adapter, 3)
    assert tokens.attention_mask.min() == 0  # some rows are padded
    result = session.prefill(PrefillRequest(tokens, session.encode({"pixel_values": pixels.numpy()}), (), 0))
    logits, chosen = [result.logits], []
    for _ in range(3):
        chosen.append(logits[-1].argmax(axis=-1))
        logits.append(session.decode(result.cache, chosen[-1]))
    for row in range(3):  # one row at a time, without padding and cache
        real = tokens.input_ids[row][tokens.attention_mask[row] == 1]
        ids = torch.from_numpy(np.concatenate([real, [step[row] for step in chosen]]))[None]
        with torch.inference_mode():
            wanted = adapter.model(input_ids=ids, pixel_values=pixels[row : row + 1]).logits[0, -4:].numpy()
        np.testing.assert_allclose(np.stack([step[row] for step in logits]), wanted, atol=2e-5)


def test_it_equals_the_unpruned_walk():
    adapter = tiny_adapter(kv_heads=1)
    session, runner, tokens = StockSession(adapter), ReferenceRunner(adapter), tiny_tokens(adapter, 2)
    pixels = tiny_pixels(2).numpy()
    images = session.encode({"pixel_values": pixels})
    visual = images.visual
    assert images.saliency is None
    np.testing.assert_allclose(visual, runner.encode_image(pixels).numpy(), atol=1e-5)
    walked = runner.prefill(tokens, torch.from_numpy(visual)).logits.numpy()
    np.testing.assert_allclose(session.prefill(PrefillRequest(tokens, images, (), 0)).logits, walked, atol=2e-5)
