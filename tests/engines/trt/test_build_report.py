"""build_report.json: what is written is read back, and layers are told apart and counted by kind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toprl_engines.trt.build_report import (
    KINDS,
    BuildReport,
    GraphBuild,
    InputRange,
    LayerEntry,
    inspected_layers,
    listed_layers,
    network_layers,
    read_build_report,
    write_build_report,
)
from toprl_export.errors import UserError

names = st.text(st.characters(codec="utf-8"), max_size=8)
numbers = st.lists(st.integers(0, 10**9), max_size=3).map(tuple)
layers = st.lists(
    st.builds(LayerEntry, names, names, st.sampled_from(KINDS), names, st.lists(names, max_size=2).map(tuple)),
    max_size=3,
).map(tuple)
graphs = st.builds(
    GraphBuild,
    profile=st.lists(st.builds(InputRange, names, st.booleans(), numbers, numbers, numbers), max_size=2).map(tuple),
    network=layers,
    network_layers=st.integers(3, 99),
    engine=layers,
    seconds=st.floats(0, 1e6),
    plan_bytes=st.integers(0, 2**40),
    activation_bytes=st.none() | st.integers(0, 2**40),
    warnings=st.lists(names, max_size=2).map(tuple),
)
reports = st.builds(
    BuildReport,
    binding=names,
    precision=names,
    attention=names,
    flags=st.lists(names, max_size=2).map(tuple),
    workspace_bytes=st.none() | st.integers(1, 2**40),
    timing_cache=st.booleans(),
    graphs=st.dictionaries(names, graphs, max_size=2),
)


@given(reports)
def test_round_trip(report: BuildReport):
    with TemporaryDirectory() as directory:
        write_build_report(Path(directory), report)
        assert read_build_report(Path(directory, "build_report.json")) == report


SOME = GraphBuild(
    profile=(InputRange("x", False, (1, 3), (1, 3), (4, 3)),),
    network=(
        LayerEntry("a", "PLUGIN_V3", "attention plugin"),
        LayerEntry("b", "PLUGIN_V3", "attention plugin"),
        LayerEntry("t", "TOPK", "top-k"),
    ),
    network_layers=10,
    engine=(LayerEntry("k", "kgen", "other", "kernel", ("n", "m")), LayerEntry("g", "kgen", "gather")),
    seconds=1.5,
    plan_bytes=7,
    activation_bytes=None,
    warnings=(),
)
REPORT = BuildReport("tensorrt_rtx 1.7.1", "fp16", "plugin", ("STRONGLY_TYPED",), None, False, {"prefill": SOME})


def test_layers_are_counted_by_kind():
    assert SOME.kinds == {
        "attention native": 0,
        "attention plugin": 2,
        "top-k": 1,
        "gather": 0,
        "other": 7,
    }
    assert SOME.engine_kinds["gather"] == SOME.engine_kinds["other"] == 1
    written = REPORT.to_json()["graphs"]["prefill"]
    assert (written["network_kinds"], written["engine_kinds"]) == (SOME.kinds, SOME.engine_kinds)


def test_files_are_read_back_and_others_refused(tmp_path: Path):
    write_build_report(tmp_path, REPORT)
    path = tmp_path / "build_report.json"
    assert read_build_report(path) == REPORT
    content = json.loads(path.read_text())
    for change, message in (
        ({"version": 1}, "has version 1 of toprl-export/trt-build, but this release reads version 2"),
        ({"format": "toprl-export/report"}, "has format 'toprl-export/report'"),
        ({"timing_cache": 1}, "timing_cache is 1, expected true or false"),
        ({"graphs": {"prefill": {}}}, r"lacks graphs\.prefill\.profile"),
        ({"graphs": {"prefill": 7}}, r"graphs\.prefill is 7, expected an object"),
        ({"graphs": []}, r"graphs is \[\], expected an object"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=message):
            read_build_report(path)


LISTING = """Layers:
Name: __mye10379_0_myl1_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: 
Name: __myl_ConcBott_myl1_9, LayerType: kgen, Inputs: [ { Name: a, Dimensions: [-1,25] }], Constants: [], Outputs: [ { Name: b }], TacticName: __myl_ConcBott_0x28c8, StreamId: 0, Metadata: [ONNX Layer: node_cat][ONNX Layer: node_sort__1]
Name: __myl_Topk_myl1_12, LayerType: kgen, Inputs: [], Constants: [], Outputs: [], TacticName: __myl_Topk_0x1, StreamId: 0, Metadata: [ONNX Layer: node_topk__1]
Name: node_linear_2+node_linear_1, LayerType: gemm, Inputs: [], Constants: [ { Name: w } ], Outputs: [], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: node_linear_2][ONNX Layer: node_linear_1]
Name: _gemm_mha_v2_myl1_24, LayerType: kgen, Inputs: [], Constants: [], Outputs: [], TacticName: _gemm_mha_v2_0xa2ca, StreamId: 0, Metadata: [ONNX Layer: node_flash_attention]
Name: node_flash_attention_myl0_9, LayerType: custom_layer, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: [ONNX Layer: node_flash_attention]
Name: __myl_ReshGath_myl1_3, LayerType: kgen, Inputs: [], Constants: [], Outputs: [], TacticName: __myl_ReshGath_0x2, StreamId: 0, Metadata: [ONNX Layer: node_index_select]

I/O Tensors:
 Name: token, IOMode: Input, DataType: Int64, Dimensions: [-1,1], Location: Device
"""  # noqa: E501  one layer a line, as TensorRT writes it


def test_the_log_lists_kernels_by_what_they_join():
    found = listed_layers(LISTING)
    assert [(layer.type, layer.kind) for layer in found] == [
        ("shape_call", "other"),
        ("kgen", "top-k"),
        ("kgen", "top-k"),
        ("gemm", "other"),
        ("kgen", "attention native"),
        ("custom_layer", "attention plugin"),
        ("kgen", "gather"),
    ]
    assert found[1].nodes == ("node_cat", "node_sort__1") and found[1].tactic == "__myl_ConcBott_0x28c8"
    assert (found[0].nodes, found[0].tactic) == ((), "")


def test_a_log_without_a_listing_lists_nothing():
    assert listed_layers("") == ()
    assert listed_layers("Layers:\nLayer(Myelin): {ForeignNode[a...b]}, Tactic: 0x0") == ()


def test_the_inspector_says_the_same_in_json():
    layers = [
        {"Name": "_gemv_mha_v1_myl0_1", "LayerType": "kgen", "TacticName": "_gemv_mha_v1_0x1", "Metadata": ""},
        {"Name": "node_flash_attention", "LayerType": "PluginV3", "Metadata": "[ONNX Layer: node_flash_attention]"},
        "[only a name]",
    ]
    found = inspected_layers(json.dumps({"Layers": layers, "Bindings": ["x"]}))
    assert [layer.kind for layer in found] == ["attention native", "attention plugin"]
    assert found[1].nodes == ("node_flash_attention",)
    assert inspected_layers("{}") == ()


@dataclass
class Network:
    """As much of a parsed network as the report reads."""

    types: list[str]

    @property
    def num_layers(self) -> int:
        return len(self.types)

    def get_layer(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(name=f"layer_{index}", type=SimpleNamespace(name=self.types[index]))


def test_an_attention_of_the_network_counts_once():
    found = network_layers(Network(["CONSTANT", "ATTENTION_INPUT", "ATTENTION_OUTPUT", "PLUGIN_V3", "TOPK", "GATHER"]))
    assert [(layer.name, layer.kind) for layer in found] == [
        ("layer_1", "attention native"),
        ("layer_3", "attention plugin"),
        ("layer_4", "top-k"),
        ("layer_5", "gather"),
    ]
