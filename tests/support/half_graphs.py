"""Graphs of tiny models in half precision; each is exported once for all tests of a run."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.support.agents import save_tiny_agent
from tests.support.tiny_llava import tiny_adapter
from toprl_engines.graph.export import ExportJob, export_graphs
from toprl_export.agent import Agent, load_agent
from toprl_export.engine import BuildRequest
from toprl_export.pruning.actor import StackedActors

STAGE_LAYERS = (0, 1)
BUDGETS = (12, 6)
TASKS = ("mini-exist", "mini-read")
KV_HEADS = {"fp16": 1, "bf16": 2}
"""In fp16 the two heads share their keys and values."""


@dataclass(frozen=True)
class HalfGraphs:
    """Two layers, a stage before each, two agents; the files are in ``directory``."""

    folder: tempfile.TemporaryDirectory
    job: ExportJob
    agents: tuple[Agent, ...]
    agent_dirs: tuple[Path, ...]

    @property
    def directory(self) -> Path:
        return Path(self.folder.name) / "graphs"

    def request(self, **changes) -> BuildRequest:
        """What `toprl-export build` would ask an engine for."""
        plan = self.agents[0].record.plan
        return BuildRequest(self.job.adapter, self.agents, plan, self.job.precision, **changes)


@cache
def half_graphs(precision: str) -> HalfGraphs:
    """``precision`` is fp16 or bf16."""
    folder = tempfile.TemporaryDirectory(prefix="toprl-half-")
    root = Path(folder.name)
    adapter = tiny_adapter(layers=2, kv_heads=KV_HEADS[precision])
    directories = tuple(
        save_tiny_agent(root / task, adapter, task, BUDGETS, STAGE_LAYERS, hidden_size=16, seed=seed)
        for seed, task in enumerate(TASKS)
    )
    agents = tuple(map(load_agent, directories))
    job = ExportJob(adapter, StackedActors([agent.actor for agent in agents]), STAGE_LAYERS, None, precision)
    graphs = HalfGraphs(folder, job, agents, directories)
    graphs.directory.mkdir()
    export_graphs(job, graphs.directory)
    return graphs
