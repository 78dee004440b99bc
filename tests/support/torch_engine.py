"""An engine that runs the walk in PyTorch: right, or wrong in one chosen way, for tests of what judges engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from toprl_export.agent import load_agent
from toprl_export.bundle import Bundle
from toprl_export.engine import BuildRequest, BuildResult, SessionOptions
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.reference import Pruning, to_tensors
from toprl_export.models.walk import NO_NEEDS, Decision, layer_groups, walk_decode, walk_prefill
from toprl_export.pruning.scorer import Scorer, StageInputs, make_scorer
from toprl_export.runtime.session import EncodedImages, PrefillRequest, PrefillResult

Fault = Literal["none", "selection", "logits", "decode"]


class _Reversed(Scorer):
    """Keeps what another scorer would drop."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self._scorer = scorer
        self.needs = scorer.needs

    def forward(self, inputs: StageInputs) -> torch.Tensor:
        return -self._scorer(inputs)


@dataclass
class _Cache:
    keys: Any
    values: Any
    masks: Any
    position: torch.Tensor


class TorchSession:
    """One opened model; ``scorer`` None prunes nothing and keeps no indices."""

    def __init__(
        self, adapter: LVLMAdapter, scorer: Scorer | None, stage_layers: tuple[int, ...], fault: Fault = "none"
    ) -> None:
        self._adapter = adapter
        self._scorer = _Reversed(scorer) if scorer and fault == "selection" else scorer
        self._stage_layers = stage_layers if scorer else ()
        self._needs = scorer.needs if scorer else NO_NEEDS
        self._fault = fault

    @torch.inference_mode()
    def encode(self, pictures) -> EncodedImages:
        tensor = torch.from_numpy(pictures["pixel_values"])
        saliency = self._adapter.vision_saliency(tensor).numpy() if self._needs.saliency else None
        return EncodedImages(self._adapter.encode_image(tensor).numpy(), saliency)

    @torch.inference_mode()
    def prefill(self, request: PrefillRequest) -> PrefillResult:
        def decide(inputs: StageInputs) -> Decision:
            return Pruning(self._stage_layers, request.keep_counts, self._scorer).decide(inputs)

        tokens = to_tensors(request.tokens, torch.device("cpu"))
        visual, saliency = torch.from_numpy(request.images.visual), request.images.saliency
        done = walk_prefill(
            self._adapter.decoder,
            tokens,
            visual,
            self._stage_layers,
            decide,
            needs=self._needs,
            saliency=None if saliency is None else torch.from_numpy(saliency),
        )
        cache = _Cache(done.keys, done.values, done.masks, tokens.position_ids[:, -1:])
        logits = done.logits.numpy()
        if self._fault == "logits":
            logits = logits + np.float32(0.01) * np.sin(np.arange(logits.shape[1], dtype=np.float32))
        return PrefillResult(logits, cache, tuple(kept.numpy() for kept in done.kept))

    @torch.inference_mode()
    def decode(self, cache: _Cache, tokens):
        # The fault: positions stand still, as when an exporter bakes them in.
        cache.position = cache.position + (self._fault != "decode")
        row = torch.ones((len(tokens), 1), dtype=torch.bool)
        cache.masks = tuple(torch.cat([mask, row], dim=1) for mask in cache.masks)
        decoder = self._adapter.decoder
        logits, cache.keys, cache.values = walk_decode(
            decoder,
            torch.from_numpy(tokens)[:, None],
            cache.position,
            cache.keys,
            cache.values,
            cache.masks,
            layer_groups(self._stage_layers, len(decoder)),
        )
        return logits.numpy()

    def close(self) -> None:
        """Nothing: the adapter belongs to the test."""


class TorchEngine:
    """Builds placeholder files; opens the model that a test put into ``adapter``."""

    name = "torch"
    adapter: ClassVar[LVLMAdapter]
    fault: ClassVar[Fault] = "none"

    def check(self) -> None:
        """Always works."""

    def check_request(self, request: BuildRequest) -> None:
        """It can build anything."""

    def build(self, request: BuildRequest, directory: Path) -> BuildResult:
        for role in ("vision", "prefill", "decode"):
            (directory / f"{role}.bin").write_bytes(role.encode())
        return BuildResult(tuple((r, f"{r}.bin") for r in ("vision", "prefill", "decode")), {}, 23)

    def open(self, bundle: Bundle, options: SessionOptions) -> TorchSession:
        manifest = bundle.manifest
        if manifest.baseline:
            scorer = make_scorer(manifest.baseline)
        else:
            scorer = load_agent(bundle.agent_dir(manifest.tasks[0])).actor
        return TorchSession(self.adapter, None if options.unpruned else scorer, manifest.plan.stage_layers, self.fault)

    def graph_flops(self, bundle, batch: int, prompt_length: int, keep_counts: tuple[int, ...] | None) -> int:
        kept = bundle.manifest.plan.visual_tokens if keep_counts is None else keep_counts[-1]
        return batch * (prompt_length - bundle.manifest.plan.visual_tokens + kept) * 1000
