"""The unpruned engine against the stock Hugging Face model: its own processor, its own forward, its own ``generate``.

No token ids, positions or forward pass of ours stand on the reference's side, so an error that the engine shares with
our own walk or frontend shows here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.reference import until_end
from toprl_export.runtime.pictures import open_picture
from toprl_export.runtime.session import PrefillRequest
from toprl_export.tasks.task import Sample
from toprl_export.validation.answers import Tokens, greedy_tokens, token_agreement
from toprl_export.validation.bench import Bench
from toprl_export.validation.costs import ENGINE_UNPRUNED
from toprl_export.validation.report import StockParity


def measure_stock_parity(
    bench: Bench, samples: Sequence[Sample], max_new_tokens: int, progress: Callable[[], object] = lambda: None
) -> StockParity:
    """Ask both the same questions, one by one.

    Args:
        bench: the engine, unpruned, and the model.
        samples: the questions, at least one.
        max_new_tokens: the longest answer.
        progress: called after each question.
    """
    adapter, session = bench.runner.adapter, bench.timed_sessions()[ENGINE_UNPRUNED]
    errors: list[float] = []
    ours: Tokens = []
    theirs: Tokens = []
    for sample in samples:
        logits, tokens = _stock_answer(adapter, sample, max_new_tokens)
        (batch,) = bench.batches_of([sample], 1)
        images = session.session.encode(batch.pictures)
        request = PrefillRequest(batch.tokens, images, session.keep_counts, session.agent_index)
        errors.append(float(np.abs(session.session.prefill(request).logits - logits).max()))
        limits = adapter.tokenizer, adapter.end_tokens, max_new_tokens
        ours += greedy_tokens(session, batch.tokens, images, *limits)
        theirs.append(tokens)
        progress()
    worst = max(errors) if all(map(math.isfinite, errors)) else None
    return StockParity(worst, token_agreement(ours, theirs), len(errors))


@torch.inference_mode()
def _stock_answer(adapter: LVLMAdapter, sample: Sample, max_new_tokens: int) -> tuple[np.ndarray, list[int]]:
    """Logits of the prompt's last position, ``float32 [1, V]``, and greedy tokens up to the end."""
    made = adapter.frontend.own_inputs(open_picture(sample.image), sample.question, "pt")
    inputs = {
        name: tensor.to(adapter.device, adapter.dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in made.items()
    }
    logits = adapter.model(**inputs).logits[:, -1]
    made = adapter.model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, pad_token_id=0)
    row = made[0, inputs["input_ids"].shape[1] :].tolist()
    return logits.float().cpu().numpy(), until_end(row, adapter.end_tokens)
