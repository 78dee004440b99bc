"""Layers are told apart in what TensorRT says of them: in its log, by its inspector, and of a parsed network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace

from toprl_engines.trt.build_report import inspected_layers, listed_layers, network_layers

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
    """As much of a parsed network as is asked for."""

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
