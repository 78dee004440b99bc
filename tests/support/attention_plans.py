"""Building one attention layer with TensorRT for RTX, in a process of its own: plugins stay registered for good."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
from onnx import TensorProto, helper

ROOT = Path(__file__).parents[2]
SIZES = {"query": 8, "key": 2, "value": 2}
"""Inputs and their heads."""


def attention_model(kind: int, masked: bool, head_dim: int = 128, **attributes: float) -> onnx.ModelProto:
    """A graph of one `toprl::FlashAttention` node of the given element type."""
    shapes = {name: ["b", heads, "q" if name == "query" else "k", head_dim] for name, heads in SIZES.items()}
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    if masked:
        inputs.append(helper.make_tensor_value_info("mask", TensorProto.BOOL, ["b", 1, "q", "k"]))
    output = helper.make_tensor_value_info("attended", kind, shapes["query"])
    names = [value.name for value in inputs]
    node = helper.make_node("FlashAttention", names, ["attended"], domain="toprl", name="attention", **attributes)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("toprl", 1)]
    return helper.make_model(helper.make_graph([node], "attention", inputs, [output]), opset_imports=opsets)


def plugin_plan(library: str | None, core: str | None = None, head_dim: int = 128) -> str:
    """Build both dtypes with and without a mask; "built", or the last line of what went wrong.

    Args:
        library: the C++ plugin's; None: the Python route.
        core: the Python route's library; None: Triton.
        head_dim: of the heads.
    """
    code = "import sys; from tests.support.attention_plans import build_all; build_all(*sys.argv[1:])"
    search = [str(ROOT), str(ROOT / "engines"), str(ROOT / "engines" / "flash_attention")]
    done = subprocess.run(
        [sys.executable, "-c", code, library or "", core or "", str(head_dim)], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search)}, capture_output=True, text=True,
    )  # fmt: skip
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1] if done.returncode == 0 else f"exit {done.returncode}: {lines[-1:]}"


def build_all(library: str, core: str, head_dim: str) -> None:
    """The other process."""
    from toprl_engines.trt.binding import load_binding
    from toprl_engines.trt.plugin import register_python_plugin

    binding = load_binding("tensorrt_rtx")
    if library:
        binding.module.get_plugin_registry().load_library(library)
    else:
        register_python_plugin(binding, Path(core) if core else None)
    for kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        for masked in (False, True):
            _build(binding.module, attention_model(kind, masked, int(head_dim), scale=0.125), masked, int(head_dim))
    print("built")


def _build(trt, model: onnx.ModelProto, masked: bool, head_dim: int) -> None:
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse(model.SerializeToString()), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    assert [network.get_layer(i).type for i in range(network.num_layers)] == [trt.LayerType.PLUGIN_V3]
    profile = builder.create_optimization_profile()
    for name, heads in SIZES.items():
        profile.set_shape(name, *[(b, heads, n, head_dim) for b, n in ((1, 1), (1, 64), (4, 512))])
    if masked:
        profile.set_shape("mask", (1, 1, 1, 1), (1, 1, 64, 64), (4, 1, 512, 512))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
