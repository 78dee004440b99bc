"""What a build leaves beside its plans, and what it takes from an earlier one."""

from __future__ import annotations

import shutil
from pathlib import Path

from toprl_engines.graph.export import WEIGHTS
from toprl_engines.trt.builder import TimingCache
from toprl_engines.trt.copies import SUFFIX
from toprl_export.bundle import load_bundle
from toprl_export.engine import GRAPHS
from toprl_export.errors import UserError

GRAPH_FOLDER = "graphs"
TIMING_CACHE = "timing.cache"
TIMING_ROLE = "timing_cache"
Files = list[tuple[str, str]]
"""Role and path of each, relative to the bundle."""


def graph_role(name: str) -> str:
    """The role of a canonical graph that a bundle keeps."""
    return f"graph_{name}"


def copy_role(name: str) -> str:
    """The role of TensorRT's copy of a graph, from which a plan's weights are filled in."""
    return f"refit_{name}"


def keep_graphs(directory: Path, kept: bool) -> Files:
    """List the graphs that were exported into ``directory``, or remove them and list none."""
    if not kept:
        shutil.rmtree(directory / GRAPH_FOLDER)
        return []
    graphs = [(graph_role(name), f"{GRAPH_FOLDER}/{name}.onnx") for name in GRAPHS]
    copies = [(copy_role(name), f"{GRAPH_FOLDER}/{name}{SUFFIX}") for name in GRAPHS]
    return [*graphs, *copies, ("weights", f"{GRAPH_FOLDER}/{WEIGHTS}")]


def copy_plugin(library: Path, directory: Path, name: str) -> Files:
    """Put the plugin's library into ``directory``, from where the plans will load it."""
    shutil.copyfile(library, directory / name)
    return [("plugin", name)]


def earlier_timings(earlier: Path | None) -> TimingCache:
    """What an earlier build in the same place measured; empty where there is nothing to be had."""
    if earlier is None:
        return TimingCache()
    try:
        return TimingCache(load_bundle(earlier, verify=False).path(TIMING_ROLE).read_bytes())
    except (UserError, OSError):
        # Timings only save time: a bundle that is damaged, older or without them starts from none.
        return TimingCache()


def write_timings(cache: TimingCache, directory: Path) -> Files:
    """Keep what was measured for the next build in the same place."""
    (directory / TIMING_CACHE).write_bytes(cache.content)
    return [(TIMING_ROLE, TIMING_CACHE)]
