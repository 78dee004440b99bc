"""All 32 layers of LLaVA-1.5's shape through TensorRT for RTX; minutes, so by hand: pytest -m 'trt and slow'."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest

from tests.support.llava_shape import llava_shape
from tests.support.plans import build_graph
from toprl_engines.graph.export import ExportJob, export_graphs
from toprl_export.engine import BuildRequest
from toprl_export.pruning.actor import Actor, ActorConfig, StackedActors
from toprl_export.pruning.baselines.specs import baseline_plan

pytestmark = [pytest.mark.trt, pytest.mark.slow]
pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")

LAYERS = 32
STAGE_LAYERS = (0, 8, 20)


@cache
def exported(precision: str) -> tuple[tempfile.TemporaryDirectory, BuildRequest]:
    folder = tempfile.TemporaryDirectory(prefix="toprl-llava-")
    adapter = llava_shape(LAYERS)
    actors = StackedActors([Actor(ActorConfig(adapter.shape.hidden, 64, len(STAGE_LAYERS)))])
    job = ExportJob(adapter, actors, STAGE_LAYERS, None, precision)
    export_graphs(job, Path(folder.name), ("vision", "prefill", "decode"))
    # The plan of a baseline with the same stages says the same to the builder.
    plan = baseline_plan("uniform", adapter.visual_tokens, LAYERS, (192, 64), STAGE_LAYERS)
    return folder, BuildRequest(adapter, (), plan, precision, baseline="uniform")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("attention", ["native", "plugin"])
def test_prefill_and_decode_build_with_an_attention_layer_per_decoder_layer(precision, attention):
    folder, request = exported(precision)
    kind = f"attention {attention}"
    for graph in ("prefill", "decode"):
        found = build_graph(Path(folder.name), graph, attention, request)
        print(f"{precision} {attention} {graph}: {found.seconds:.0f} s, {found.plan_bytes} bytes, {found.engine_kinds}")
        assert found.kinds[kind] == found.engine_kinds[kind] == LAYERS
    assert found.kinds["top-k"] == 0


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_tower_builds_with_fused_attention(precision):
    folder, request = exported(precision)
    found = build_graph(Path(folder.name), "vision", "plugin", request)
    # The features come from the last layer but one, so the last is not in the graph.
    assert found.kinds["attention plugin"] == 23
