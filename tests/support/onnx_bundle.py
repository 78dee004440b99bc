"""Bundles of the tiny model that the ONNX engine really built; each is built once for all tests of a run."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.support.agents import save_tiny_agent
from tests.support.tiny_llava import tiny_adapter, tiny_pixels, tiny_tokens
from toprl_engines.ort.engine import ONNXRuntimeEngine
from toprl_engines.ort.session import ONNXRuntimeSession
from toprl_export.agent import Agent, load_agent
from toprl_export.build import PreparedBuild, write_bundle
from toprl_export.bundle import Bundle
from toprl_export.engine import BuildRequest, SessionOptions
from toprl_export.models.llava import LlavaAdapter
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.runtime.session import PrefillRequest

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

    def pruning(self, keep_counts: tuple[int, ...], agent: int = 0) -> Pruning:
        return Pruning(self.bundle.manifest.plan.stage_layers, keep_counts, self.agents[agent].actor)

    def request(
        self, keep_counts: tuple[int, ...], agent: int = 0, batch: int = 2, repeat: int = 1, seed: int = 1
    ) -> PrefillRequest:
        visual = self.reference.encode_image(tiny_pixels(batch, seed).numpy()).numpy()
        return PrefillRequest(tiny_tokens(self.adapter, batch, repeat), visual, keep_counts, agent)


def _build(stage_layers: tuple[int, ...], budgets: tuple[int, ...], static_k: bool, **model: int) -> OnnxBundle:
    folder = tempfile.TemporaryDirectory(prefix="toprl-tiny-")
    root = Path(folder.name)
    adapter = tiny_adapter(**model)
    directories = tuple(
        save_tiny_agent(root / task, adapter, task, budgets, stage_layers, hidden_size=16, seed=seed)
        for seed, task in enumerate(TASKS)
    )
    agents = tuple(load_agent(directory) for directory in directories)
    request = BuildRequest(adapter, agents, agents[0].record.plan, "fp32", static_k=static_k)
    prepared = PreparedBuild(ONNXRuntimeEngine(), request, directories)
    bundle = write_bundle(prepared, root / "bundle", overwrite=False, command="test")
    return OnnxBundle(folder, adapter, agents, bundle)


@cache
def staged_bundle() -> OnnxBundle:
    """3 layers, a stage before each, keep counts as inputs, 2 agents, budgets 12 and 6 of 25."""
    return _build((0, 1, 2), (12, 6), static_k=False, layers=3)


@cache
def grouped_bundle() -> OnnxBundle:
    """2 layers whose 2 heads share one key-value head, one stage before layer 1, its keep count baked in."""
    return _build((1,), (15,), static_k=True, layers=2, kv_heads=1)
