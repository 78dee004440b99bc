"""The inputs of a bundle's graphs, made from a request and checked, or of given sizes; the same for every engine."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toprl_export.bundle import Bundle
from toprl_export.errors import UserError
from toprl_export.manifest import Manifest
from toprl_export.runtime.layout import TokenBatch
from toprl_export.runtime.session import PrefillRequest, one_for_all


def token_feeds(tokens: TokenBatch) -> dict[str, NDArray[Any]]:
    """The prefill graphs' token inputs by name."""
    return {name: array for name, array in vars(tokens).items() if array is not None}


def request_feeds(
    manifest: Manifest, request: PrefillRequest, names: Collection[str], pruned: bool
) -> dict[str, NDArray[Any]]:
    """All inputs of a prefill graph by name.

    Args:
        manifest: of the bundle.
        request: the prompt.
        names: the inputs that the graph has.
        pruned: whether it has stages; without them keep counts and agent are not looked at.

    Raises:
        UserError: keep counts or agent index do not fit the bundle, or the images lack the saliency it reads.
    """
    feeds = {**token_feeds(request.tokens), "visual": request.images.visual}
    if not pruned:
        return feeds
    _check(manifest, request, names)
    steering = {
        "saliency": request.images.saliency,
        "agent_index": np.asarray(request.agent_index, dtype=np.int64),
        "keep_counts": np.asarray(request.keep_counts, dtype=np.int64),
    }
    return feeds | {name: feed for name, feed in steering.items() if name in names and feed is not None}


def _check(manifest: Manifest, request: PrefillRequest, names: Collection[str]) -> None:
    plan, tokens = manifest.plan, request.tokens
    if tokens.visual_rows is None:
        counts = one_for_all(request.keep_counts)
        _check_counts(counts, plan.visual_tokens, len(plan.stages))
        if "keep_counts" not in names and counts != plan.schedules[0].keep_counts:
            raise UserError(
                f"keep counts {list(counts)} differ from the {list(plan.schedules[0].keep_counts)} that were built in: "
                "use that budget or build without --static-k"
            )
    else:
        each = np.asarray(request.keep_counts)
        if each.shape != (tokens.batch, len(plan.stages)):
            raise UserError(
                f"keep counts of the shape {list(each.shape)} were given for {tokens.batch} prompts and "
                f"{len(plan.stages)} stages: give a row for each prompt"
            )
        for counts, n in zip(each.tolist(), tokens.visual_counts.tolist(), strict=True):
            _check_counts(counts, max(1, n), len(plan.stages))
    last = max(0, len(manifest.agents) - 1)
    if not 0 <= request.agent_index <= last:
        raise UserError(f"agent index {request.agent_index} is not one of 0 to {last}")
    if "saliency" in names and request.images.saliency is None:
        raise UserError(
            "the bundle's scorer reads the images' saliency, which is missing: let this session encode them"
        )


def _check_counts(counts: Sequence[int], visual_tokens: int, stages: int) -> None:
    falling = all(1 <= kept <= before for before, kept in pairwise((visual_tokens, *counts)))
    if len(counts) != stages or not falling:
        raise UserError(
            f"keep counts {list(counts)} do not fit the plan: expected {stages}, none above the one before, from "
            f"{visual_tokens} down to 1"
        )


def prefill_feeds(
    bundle: Bundle, batch: int, prompt_length: int, keep_counts: tuple[int, ...] | None
) -> dict[str, NDArray[Any]]:
    """All inputs that a prefill graph may have, the image first in the prompt; ``keep_counts`` None: of the unpruned.

    Raises:
        UserError: the prompt has no room for text beside the visual tokens.
    """
    model = bundle.manifest.model
    n = model.visual_tokens
    if prompt_length <= n:
        raise UserError(f"a prompt of {prompt_length} tokens has no text beside its {n} visual tokens: make it longer")
    places = np.tile(np.arange(prompt_length, dtype=np.int64), (batch, 1))  # [b, s]
    tokens = TokenBatch(
        input_ids=np.zeros_like(places),
        attention_mask=np.ones_like(places),
        position_ids=places,
        visual_index=places[:, :n],
        text_index=places[:, n:],
    )
    feeds = {**token_feeds(tokens), "visual": np.zeros((batch, n, model.shape.hidden), dtype=np.float32)}
    if keep_counts is not None:
        feeds["saliency"] = np.zeros((batch, n), dtype=np.float32)
        feeds["agent_index"] = np.asarray(0, dtype=np.int64)
        feeds["keep_counts"] = np.asarray(keep_counts, dtype=np.int64)
    return feeds
