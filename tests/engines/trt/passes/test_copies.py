"""TensorRT's copies of real graphs: only nodes and functions differ, and native attention computes the same."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.support.onnx_bundle import grouped_bundle, staged_bundle
from toprl_engines.graph.passes import PassResult
from toprl_engines.graph.signature import GraphError
from toprl_engines.trt.passes.copies import (
    DECOMPOSABLE_ATTENTION,
    DROP_FUNCTIONS,
    MARK,
    SUFFIX,
    attention_nodes,
    head_dim,
    lacks_plugin,
    native_attention,
    run_passes,
    write_copy,
)

LAYERS = 3


def load(name: str = "prefill") -> onnx.ModelProto:
    return onnx.load(staged_bundle().bundle.path(name), load_external_data=False)


def operators(model: onnx.ModelProto) -> Counter:
    return Counter((node.domain, node.op_type) for node in model.graph.node)


def test_the_plugin_build_drops_the_body_and_keeps_the_nodes():
    model = load()
    before = operators(model)
    assert run_passes(model, [DROP_FUNCTIONS]) == (PassResult("drop-functions", 1, 1),)
    assert not model.functions
    assert operators(model) == before and before["toprl", "FlashAttention"] == LAYERS


def test_native_attention_replaces_the_nodes_and_nothing_else():
    model, original = load(), load()
    assert run_passes(model, [native_attention()]) == (PassResult("native-attention", LAYERS, LAYERS),)
    found, before = operators(model), operators(original)
    assert found["", "Attention"] == LAYERS and not attention_nodes(model)
    assert found - Counter({("", "Attention"): LAYERS}) == before - Counter({("toprl", "FlashAttention"): LAYERS})
    for new, old in zip(model.graph.node, original.graph.node, strict=True):
        assert (new.input, new.output, new.attribute) == (old.input, old.output, old.attribute)


@pytest.mark.parametrize("built", [staged_bundle, grouped_bundle], ids=["heads", "grouped"])
def test_native_attention_computes_what_the_function_does(built, tmp_path: Path):
    """Left-padded rows and keys that several heads share; the mark is left out, for ONNX Runtime knows it not."""
    bundle = built()
    counts = bundle.bundle.manifest.plan.schedules[0].keep_counts
    request = bundle.request(counts, agent=1)
    path = bundle.bundle.path("prefill")
    model = onnx.load(path, load_external_data=False)
    run_passes(model, [native_attention(), DROP_FUNCTIONS])
    copy = tmp_path / "prefill.onnx"
    copy.write_bytes(model.SerializeToString())
    (tmp_path / "weights.bin").hardlink_to(bundle.bundle.path("weights"))
    feeds = {
        **{name: getattr(request.tokens, name) for name in ("input_ids", "attention_mask", "position_ids")},
        **{name: getattr(request.tokens, name) for name in ("visual_index", "text_index")},
        "visual": request.images.visual,
        "agent_index": np.asarray(1),
        "keep_counts": np.asarray(counts),
    }
    assert np.abs(_logits(copy, feeds) - _logits(path, feeds)).max() < 1e-5


def _logits(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}
    return session.run(["logits"], {name: feed for name, feed in feeds.items() if name in taken})[0]


def test_every_attention_is_marked_once():
    model = load()
    marked = [
        run_passes(model, passes)[-1]
        for passes in ([native_attention(), DECOMPOSABLE_ATTENTION], [DECOMPOSABLE_ATTENTION])
    ]
    assert [(one.matched, one.changed) for one in marked] == [(LAYERS, LAYERS), (LAYERS, 0)]
    marks = [
        [a.i for a in node.attribute if a.name == MARK] for node in model.graph.node if node.op_type == "Attention"
    ]
    assert marks == [[1]] * LAYERS


def test_the_plugin_takes_heads_that_it_has_kernels_for():
    """The decoder's are 64 wide, the tiny vision tower's 16."""
    prefill, vision = load("prefill"), load("vision")
    assert {head_dim(prefill, node) for node in attention_nodes(prefill)} == {64}
    assert {head_dim(vision, node) for node in attention_nodes(vision)} == {16}
    assert not any(lacks_plugin(prefill, node) for node in attention_nodes(prefill))
    assert all(lacks_plugin(vision, node) for node in attention_nodes(vision))


@pytest.mark.parametrize(("attention", "plugin", "native"), [("plugin", LAYERS, 0), ("native", 0, LAYERS)])
def test_a_copy_shares_the_weights_and_leaves_the_canonical_graph_alone(tmp_path, attention, plugin, native):
    source = staged_bundle().bundle.path("prefill")
    shutil.copyfile(source, tmp_path / "prefill.onnx")
    copy = write_copy(tmp_path / "prefill.onnx", attention)
    assert copy.name == "prefill" + SUFFIX
    assert (tmp_path / "prefill.onnx").read_bytes() == source.read_bytes()
    found, original = onnx.load(copy, load_external_data=False), load()
    assert found.graph.initializer == original.graph.initializer
    assert (operators(found)["toprl", "FlashAttention"], operators(found)["", "Attention"]) == (plugin, native)
    assert not found.functions


def test_heads_without_a_kernel_are_native_in_a_plugin_build(tmp_path):
    shutil.copyfile(staged_bundle().bundle.path("vision"), tmp_path / "vision.onnx")
    found = onnx.load(write_copy(tmp_path / "vision.onnx", "plugin"), load_external_data=False)
    assert not attention_nodes(found) and operators(found)["", "Attention"] == 2


def test_a_pass_refuses_graphs_that_it_is_not_for():
    model = load()
    run_passes(model, [DROP_FUNCTIONS])
    with pytest.raises(GraphError, match=r"pass drop-functions needs another graph: its functions are \[\]"):
        run_passes(model, [DROP_FUNCTIONS])
    other = load()
    for node in attention_nodes(other):
        node.op_type = "Attention2"
    with pytest.raises(GraphError, match="native-attention needs another graph: it has no node of toprl::Fl"):
        run_passes(other, [native_attention()])
    model.opset_import[0].version = 20
    with pytest.raises(GraphError, match="native-attention needs another graph: its opset is 20, expected 23"):
        run_passes(model, [native_attention()])


def test_a_pass_that_does_not_do_what_it_promises_is_found_out():
    idle = replace(DROP_FUNCTIONS, apply=lambda model: PassResult(DROP_FUNCTIONS.name, 0, 0))
    with pytest.raises(GraphError, match="pass drop-functions failed: functions are left"):
        run_passes(load(), [idle])
