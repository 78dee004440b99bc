"""What a real build wrote: files, dynamic sizes, fused operators, weights once."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnxscript.rewriter.pattern import MatchResult

from tests.support.onnx_bundle import grouped_bundle, staged_bundle
from tests.support.tiny_llava import tiny_adapter
from toprl_engines.attention.tracing import routed_attention
from toprl_engines.graph import export, passes
from toprl_engines.graph.export import ExportJob, export_graphs
from toprl_engines.graph.passes import (
    ELEMENT_OF_VECTOR,
    RMS_NORMALIZATION,
    ROTARY_EMBEDDING,
    ROW_BY_SCALAR,
    ROW_GATHER,
    check_passes,
)
from toprl_engines.graph.signature import GraphError, sizes_of
from toprl_export.engine import GRAPHS
from toprl_export.pruning.actor import Actor, ActorConfig, StackedActors

LAYERS = 3


@pytest.fixture(scope="module")
def graphs() -> dict[str, onnx.ModelProto]:
    bundle = staged_bundle().bundle
    return {name: onnx.load(bundle.path(name), load_external_data=False) for name in GRAPHS}


def sizes(graph: onnx.ModelProto) -> dict[str, tuple]:
    return {value.name: sizes_of(value) for value in (*graph.graph.input, *graph.graph.output)}


def test_the_prefill_graph_serves_every_budget_and_batch(graphs):
    found = sizes(graphs["prefill"])
    assert found["input_ids"] == ("batch", "sequence")
    assert found["keep_counts"] == (3,) and found["agent_index"] == ()
    assert found["visual"] == ("batch", 25, 128)
    for layer in range(LAYERS):
        assert found[f"key_{layer}"] == ("batch", 2, f"tokens_{layer}", 64)
        assert found[f"kept_{layer}"] == ("batch", f"kept_{layer}")
        assert found[f"mask_{layer}"] == ("batch", f"tokens_{layer}")


def test_no_graph_says_where_it_was_built(graphs):
    for graph in graphs.values():
        written = graph.SerializeToString()
        assert b"name_scopes" in written, "what is left of the traced metadata"
        for place in (b".py", b"line ", str(Path.cwd()).encode(), b"toprl_export.", b"toprl_engines."):
            assert place not in written


def test_the_decode_graph_has_one_length_per_group(graphs):
    found = sizes(graphs["decode"])
    assert found["token"] == ("batch", 1)
    for layer in range(LAYERS):
        assert found[f"key_{layer}"] == ("batch", 2, f"past_{layer}", 64)
        assert found[f"new_value_{layer}"] == ("batch", 2, f"cached_{layer}", 64)


def test_fixed_counts_leave_no_input_and_fixed_sizes():
    found = sizes(onnx.load(grouped_bundle().bundle.path("prefill"), load_external_data=False))
    assert "keep_counts" not in found
    assert found["kept_0"] == ("batch", 5)
    assert found["mask_0"] == ("batch", "sequence") and found["mask_1"] == ("batch", "tokens_1")
    assert found["key_0"] == ("batch", 1, "sequence", 64)


@pytest.mark.parametrize("name", ["prefill", "prefill_unpruned", "decode"])
def test_attention_norm_and_rotary_are_single_operators(graphs, name):
    graph = graphs[name]
    operators = Counter((node.domain, node.op_type) for node in graph.graph.node)
    assert operators["toprl", "FlashAttention"] == LAYERS
    assert operators["", "RMSNormalization"] == 2 * LAYERS + 1
    assert operators["", "RotaryEmbedding"] == 2 * LAYERS
    assert not {"Softmax", "Neg", "Pow"} & {operator for _, operator in operators}
    assert [function.name for function in graph.functions] == ["FlashAttention"]


def test_stages_are_topk_over_visual_tokens_and_row_gathers(graphs):
    pruned, unpruned = (
        Counter(node.op_type for node in graphs[name].graph.node) for name in ("prefill", "prefill_unpruned")
    )
    assert unpruned["TopK"] == 0 and pruned["TopK"] == 2 * LAYERS  # the best, and those in their order
    assert pruned["GatherND"] > unpruned["GatherND"]
    assert not {"NonZero", "ScatterND", "Loop", "Range"} & {*pruned, *unpruned}


def test_a_stage_is_few_nodes(graphs):
    """A stage's arithmetic is small, so that what it costs is mostly how many nodes a runtime has to start."""
    pruned, unpruned = (len(graphs[name].graph.node) for name in ("prefill", "prefill_unpruned"))
    assert (pruned - unpruned) / LAYERS < 39
    shapes = {"Shape", "Expand", "ConstantOfShape"}
    assert not [node.name for node in graphs["prefill"].graph.node if node.op_type in shapes]


def test_weights_are_on_disk_once(graphs):
    built = staged_bundle()
    stored: dict[int, int] = {}
    for graph in graphs.values():
        for tensor in graph.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                entry = {one.key: one.value for one in tensor.external_data}
                assert entry["location"] == "weights.bin"
                stored[int(entry["offset"])] = int(entry["length"])
    size = built.bundle.path("weights").stat().st_size
    parameters = sum(weight.numel() * 4 for weight in built.adapter.model.parameters())
    actors = sum(weight.numel() * 4 for agent in built.agents for weight in agent.actor.parameters())
    assert sum(stored.values()) <= parameters + actors
    assert sum(stored.values()) > 0.97 * parameters
    assert size <= sum(stored.values()) + 4096 * len(stored)
    # Graphs hold shapes and norms, no matrices.
    largest = max(numpy_helper.to_array(t).nbytes for g in graphs.values() for t in g.graph.initializer if t.raw_data)
    assert largest < 1024


def test_prefill_and_decode_share_their_matrices(graphs):
    def offsets(name: str) -> set[str]:
        return {
            entry.value
            for tensor in graphs[name].graph.initializer
            for entry in tensor.external_data
            if entry.key == "offset"
        }

    assert offsets("prefill_unpruned") <= offsets("prefill")
    assert len(offsets("decode") & offsets("prefill")) >= 7 * LAYERS


def test_agents_differ_in_the_stack(graphs):
    stacked = [t for t in graphs["prefill"].graph.initializer if t.name == "scorer.trunk_enter_weight"]
    weight = numpy_helper.to_array(stacked[0], base_dir=str(staged_bundle().bundle.dir))
    assert weight.shape == (2, 16, 128)
    expected = [agent.actor.trunk.enter.weight.numpy(force=True) for agent in staged_bundle().agents]
    assert np.array_equal(weight, np.stack(expected))


@cache
def small_job(stages: int) -> ExportJob:
    """A stage before every layer, keep counts and agent as inputs."""
    adapter = tiny_adapter(layers=stages)
    scorer = StackedActors([Actor(ActorConfig(adapter.shape.hidden, 16, stages))])
    return ExportJob(adapter, scorer, tuple(range(stages)))


@cache
def traced_prefill(stages: int) -> onnx.ModelProto:
    """As it is before any pass; traced once for all tests."""
    with routed_attention(small_job(stages).adapter.model):
        return ir.to_proto(export._traced(export._trace_prefill(small_job(stages))))


@pytest.mark.parametrize("stages", [1, 2])
def test_every_pass_finds_what_it_must(stages):
    required = export._trace_prefill(small_job(stages)).required
    assert set(required) >= {RMS_NORMALIZATION, ROTARY_EMBEDDING, ROW_GATHER, ROW_BY_SCALAR}
    check_passes("prefill", passes.optimise(ir.from_proto(traced_prefill(stages))), required)


def found_nothing(*_: object, **__: object) -> MatchResult:
    return MatchResult().fail("disabled")


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        (RMS_NORMALIZATION, None),
        (ROTARY_EMBEDDING, passes.RotaryFusion),
        (ROW_GATHER, passes.RowGather),
        (ROW_BY_SCALAR, passes.RowByScalar),
        (ELEMENT_OF_VECTOR, passes.ElementOfVector),
    ],
)
def test_a_pass_that_finds_nothing_where_it_must_fails_the_build(monkeypatch, tmp_path, name, rule):
    if rule is None:
        monkeypatch.setattr(passes, "fuse", lambda model: {"RMSNormalization": 0, "RotaryEmbedding": 99})
    else:
        monkeypatch.setattr(rule, "check", found_nothing)
    traced = ir.from_proto(traced_prefill(2))
    monkeypatch.setattr(export, "_traced", lambda trace: traced)
    with pytest.raises(GraphError, match=f"prefill: the pass {name} matched 0 places and rewrote 0, expected at least"):
        export_graphs(small_job(2), tmp_path, ["prefill"])
