"""Bundles of the tiny model that the ONNX engine really built; each is built once for all tests of a run."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from tests.support.agents import save_tiny_agent
from tests.support.tiny_llava import tiny_adapter, tiny_pixels, tiny_tokens
from toprl_engines.ort.engine import ONNXRuntimeEngine
from toprl_engines.ort.session import ONNXRuntimeSession
from toprl_export.agent import Agent, load_agent
from toprl_export.building import PreparedBuild, write_bundle
from toprl_export.bundle import Bundle
from toprl_export.engine import BuildRequest, SessionOptions
from toprl_export.models.llava import LlavaAdapter
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.models.walk import Prefill
from toprl_export.pruning.baselines.specs import baseline_plan
from toprl_export.pruning.scorer import Scorer, make_scorer
from toprl_export.runtime.session import EncodedImages, PrefillRequest

TASKS = ("mini-exist", "mini-read")


@dataclass(frozen=True)
class OnnxBundle:
    """A built bundle with what it was built from; sessions are opened with one thread."""

    folder: tempfile.TemporaryDirectory
    adapter: LlavaAdapter
    agents: tuple[Agent, ...]
    bundle: Bundle

    def open(self, unpruned: bool = False) -> ONNXRuntimeSession:
        return ONNXRuntimeEngine().open(self.bundle, SessionOptions(threads=1, provider="cpu", unpruned=unpruned))

    @property
    def reference(self) -> ReferenceRunner:
        return ReferenceRunner(self.adapter)

    def scorer(self, agent: int = 0) -> Scorer:
        baseline = self.bundle.manifest.baseline
        return make_scorer(baseline) if baseline else self.agents[agent].actor

    def pruning(self, keep_counts: tuple[int, ...], agent: int = 0) -> Pruning:
        return Pruning(self.bundle.manifest.plan.stage_layers, keep_counts, self.scorer(agent))

    def request(
        self, keep_counts: tuple[int, ...], agent: int = 0, batch: int = 2, repeat: int = 1, seed: int = 1
    ) -> PrefillRequest:
        """Its images are encoded by PyTorch."""
        pixels = tiny_pixels(batch, seed).numpy()
        saliency = self.reference.saliency(pixels).numpy() if self.scorer().needs.saliency else None
        images = EncodedImages(self.reference.encode_image(pixels).numpy(), saliency)
        return PrefillRequest(tiny_tokens(self.adapter, batch, repeat), images, keep_counts, agent)

    def expected(self, request: PrefillRequest, scorer: Scorer | None = None) -> Prefill:
        """What PyTorch makes of the request, by the bundle's scorer or another one."""
        pruning = Pruning(
            self.bundle.manifest.plan.stage_layers, request.keep_counts, scorer or self.scorer(request.agent_index)
        )
        saliency = None if request.images.saliency is None else torch.from_numpy(request.images.saliency)
        return self.reference.prefill(
            request.tokens, torch.from_numpy(request.images.visual), pruning, saliency=saliency
        )


def _build(
    stage_layers: tuple[int, ...], budgets: tuple[int, ...], static_k: bool, sees_question: bool, **model: int
) -> OnnxBundle:
    folder = tempfile.TemporaryDirectory(prefix="toprl-tiny-")
    root = Path(folder.name)
    adapter = tiny_adapter(**model)
    directories = tuple(
        save_tiny_agent(
            root / task, adapter, task, budgets, stage_layers, hidden_size=16, seed=seed, sees_question=sees_question
        )
        for seed, task in enumerate(TASKS)
    )
    agents = tuple(load_agent(directory) for directory in directories)
    request = BuildRequest(adapter, agents, agents[0].record.plan, "fp32", static_k=static_k)
    return _written(folder, request, directories)


def _build_baseline(name: str, stage_layers: tuple[int, ...], layers: int) -> OnnxBundle:
    adapter = tiny_adapter(layers=layers)
    plan = baseline_plan(name, adapter.visual_tokens, layers, (12, 6), stage_layers)
    request = BuildRequest(adapter, (), plan, "fp32", baseline=name)
    return _written(tempfile.TemporaryDirectory(prefix="toprl-tiny-"), request, ())


def _written(folder: tempfile.TemporaryDirectory, request: BuildRequest, directories: tuple[Path, ...]) -> OnnxBundle:
    prepared = PreparedBuild(ONNXRuntimeEngine(), request, directories)
    bundle = write_bundle(prepared, Path(folder.name) / "bundle", overwrite=False, command="test")
    return OnnxBundle(folder, request.adapter, request.agents, bundle)


@cache
def staged_bundle() -> OnnxBundle:
    """3 layers, a stage before each, keep counts as inputs, 2 agents, budgets 12 and 6 of 25."""
    return _build((0, 1, 2), (12, 6), static_k=False, sees_question=False, layers=3)


@cache
def grouped_bundle() -> OnnxBundle:
    """2 layers whose 2 heads share one key-value head, one stage before layer 1, its keep count baked in, 2 agents that
    see the question."""
    return _build((1,), (15,), static_k=True, sees_question=True, layers=2, kv_heads=1)


@cache
def attention_bundle() -> OnnxBundle:
    """2 layers, FastV-P before each, budgets 12 and 6 of 25."""
    return _build_baseline("fastv-p", (0, 1), layers=2)


@cache
def shares_bundle() -> OnnxBundle:
    """2 layers, DART before each, budgets 12 and 6 of 25."""
    return _build_baseline("dart", (0, 1), layers=2)


@cache
def raters_bundle() -> OnnxBundle:
    """2 layers, SparseVLM before each, budgets 12 and 6 of 25."""
    return _build_baseline("sparsevlm", (0, 1), layers=2)


@cache
def saliency_bundle() -> OnnxBundle:
    """1 layer, VisionZip before it, budgets 12 and 6 of 25."""
    return _build_baseline("visionzip", (0,), layers=1)
