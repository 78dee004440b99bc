"""The plugin: its library, and its Python route."""

from __future__ import annotations

import weakref
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.flash_attention import build_core
from toprl_engines.trt import plugin
from toprl_engines.trt.binding import Binding
from toprl_engines.trt.plugin import (
    AttentionCall,
    LibraryCore,
    TritonCore,
    make_creator,
    register_plugin,
    register_python_plugin,
)
from toprl_export.errors import UserError
from toprl_flash_attention.library import CoreError


def binding_that_takes_nothing() -> Binding:
    registry = SimpleNamespace(get_creator=lambda *name: None, load_library=lambda path: None)
    return Binding("tensorrt", SimpleNamespace(get_plugin_registry=lambda: registry), "11.2.0.4")


def test_what_is_wrong_with_a_library_is_told(tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_text("no library")
    another = Path(find_spec("numpy._core._multiarray_umath").origin)
    for library, reason in ((broken, "file too short|invalid ELF"), (another, "no plugin toprl::FlashAttention")):
        with pytest.raises(UserError, match=rf"tensorrt cannot load the plugin .*({reason}).* --attention native"):
            register_plugin(binding_that_takes_nothing(), library)


class Field:
    def __init__(self, name, data, type):
        self.name, self.data, self.type = name, data, type


class Fields:
    """As TensorRT's: what a field points to must be kept alive by who made it."""

    def __init__(self, fields):
        self.fields = [weakref.ref(field) for field in fields]

    def __iter__(self):
        return (field() for field in self.fields)


class Registry:
    def __init__(self):
        self.creators = {}

    def get_creator(self, name, version, namespace):
        return self.creators.get((name, version, namespace))

    def register_creator(self, creator, namespace):
        self.creators[creator.name, creator.plugin_version, namespace] = creator
        return True


def fake_tensorrt():
    """As much of TensorRT's module as a plugin sees; its bases must be initialised one by one, as in the real one."""

    def base(name):
        return type(name, (), {"__init__": lambda self: self.__dict__.setdefault("initialised", []).append(name)})

    registry = Registry()
    names = ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime", "IPluginCreatorV3One")
    return SimpleNamespace(
        **{name: base(name) for name in names},
        DataType=SimpleNamespace(HALF="half", BF16="bf16", FLOAT="float", BOOL="bool"),
        TensorFormat=SimpleNamespace(LINEAR="linear"),
        PluginField=Field,
        PluginFieldType=SimpleNamespace(FLOAT32="float32"),
        PluginFieldCollection=Fields,
        DimsExprs=list,
        get_plugin_registry=lambda: registry,
    )


class RecordingCore:
    def __init__(self):
        self.calls = []

    def attend(self, call, inputs, out, workspace, stream):
        self.calls.append((call, list(inputs), out, workspace, stream))


@pytest.fixture
def binding():
    return Binding("tensorrt", fake_tensorrt(), "11.2.0.4")


def make_plugin(binding, core, scale=0.125):
    creator = make_creator(binding, core)
    field = SimpleNamespace(name="scale", data=np.array([scale], np.float32))
    return creator.create_plugin("attention", [field], "build")


def tensor(*dims, type="half", format="linear"):
    desc = SimpleNamespace(dims=dims, type=type, format=format)
    return SimpleNamespace(desc=desc, max=dims, dims=dims, type=type)


SHAPES = (2, 8, 5, 64), (2, 4, 9, 64), (2, 4, 9, 64), (2, 1, 5, 9)


def test_a_call_reaches_the_core_with_its_shapes_and_addresses(binding):
    core = RecordingCore()
    runs = make_plugin(binding, core).attach_to_context(None)
    inputs = [tensor(*shape) for shape in SHAPES]
    runs.on_shape_change(inputs, [inputs[0]])
    runs.enqueue(inputs, [inputs[0]], [1, 2, 3, 4], [5], 6, 7)
    bf16 = [tensor(*shape, type="bf16") for shape in SHAPES[:3]]
    runs.enqueue(bf16, [bf16[0]], [1, 2, 3], [5], 6, 7)
    assert core.calls == [
        (AttentionCall("fp16", SHAPES[0], SHAPES[1], SHAPES[3], 0.125), [1, 2, 3, 4], 5, 6, 7),
        (AttentionCall("bf16", SHAPES[0], SHAPES[1], None, 0.125), [1, 2, 3], 5, 6, 7),
    ]


def test_it_is_a_plugin_of_all_capabilities_and_keeps_its_scale(binding):
    plugin = make_plugin(binding, RecordingCore())
    assert plugin.initialised == ["IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime"]
    assert (plugin.plugin_name, plugin.plugin_version, plugin.plugin_namespace) == ("FlashAttention", "1", "toprl")
    assert plugin.num_outputs == 1
    assert plugin.get_capability_interface("any") is plugin
    for copy in (plugin, plugin.clone()):
        (field,) = copy.get_fields_to_serialize()
        assert (field.name, field.data.tolist(), field.type) == ("scale", [0.125], "float32")
    creator = make_creator(binding, RecordingCore())
    (field,) = creator.field_names
    assert (field.name, field.type) == ("scale", "float32")


def test_the_result_is_like_the_query(binding):
    plugin = make_plugin(binding, RecordingCore())
    assert plugin.get_output_data_types(["bf16", "bf16", "bf16", "bool"]) == ["bf16"]
    assert plugin.get_output_shapes([["b", 8, "q", 64], ["b", 4, "k", 64]], [], None) == [["b", 8, "q", 64]]


@pytest.mark.parametrize(
    ("place", "change", "allowed"),
    [
        (0, {}, True),
        (0, {"type": "bf16"}, True),
        (0, {"type": "float"}, False),
        (0, {"format": "chw"}, False),
        (1, {}, True),
        (1, {"type": "bf16"}, False),  # not that of the queries
        (3, {"type": "bool"}, True),
        (3, {}, False),
        (4, {}, True),
        (4, {"type": "float"}, False),
    ],
)
def test_it_takes_half_precision_and_a_boolean_mask(binding, place, change, allowed):
    tensors = [tensor(*shape) for shape in SHAPES[:3]] + [tensor(*SHAPES[3], type="bool"), tensor(*SHAPES[0])]
    tensors[place] = tensor(*tensors[place].dims, **change)
    assert make_plugin(binding, RecordingCore()).supports_format_combination(place, tensors, 4) is allowed


def test_without_a_mask_the_fourth_tensor_is_the_result(binding):
    tensors = [tensor(*shape) for shape in (*SHAPES[:3], SHAPES[0])]
    assert make_plugin(binding, RecordingCore()).supports_format_combination(3, tensors, 3) is True


@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 8, 5, 80)] * 3,  # head dimension
        [(2, 5, 64)] * 3,
        SHAPES[:2],
        ((2, 6, 5, 64), *SHAPES[1:3]),  # heads that the key-value heads do not divide
        ((3, 8, 5, 64), *SHAPES[1:3]),  # batch
        (*SHAPES[:2], (2, 4, 8, 64)),  # values that are not as many as the keys
        (*SHAPES[:3], (2, 1, 5, 8)),
        (*SHAPES[:3], (2, 1, 4, 9)),
        (*SHAPES[:3], (2, 1, 5, 1)),  # the last dimension of a mask is whole
    ],
)
def test_shapes_that_do_not_go_together_are_refused(binding, shapes):
    plugin = make_plugin(binding, RecordingCore())
    for ask in (plugin.configure_plugin, plugin.on_shape_change):
        with pytest.raises(UserError, match="64 or 128"):
            ask([tensor(*shape) for shape in shapes], [])


def test_shapes_that_go_together_are_taken_known_or_not(binding):
    plugin = make_plugin(binding, RecordingCore())
    unknown = [(-1, 8, -1, 64), (-1, 4, -1, 64), (-1, 4, -1, 64), (-1, 1, -1, -1)]
    for shapes in (SHAPES, SHAPES[:3], (*SHAPES[:3], (1, 8, 1, 9)), unknown):
        plugin.configure_plugin([tensor(*shape) for shape in shapes], [])


def test_the_workspace_grows_with_the_shapes(binding):
    plugin = make_plugin(binding, RecordingCore())
    small = [tensor(1, 8, 1, 64), tensor(1, 4, 9, 64), tensor(1, 4, 9, 64), tensor(1, 1, 1, 9)]
    large = [tensor(4, 8, 1, 64), tensor(4, 4, 900, 64), tensor(4, 4, 900, 64), tensor(4, 1, 1, 900)]
    assert plugin.get_workspace_size(small, []) < plugin.get_workspace_size(large, [])


@pytest.mark.parametrize("fields", [[], [SimpleNamespace(name="scale", data=np.array([0.0], np.float32))]])
def test_a_missing_scale_is_told(binding, fields):
    with pytest.raises(UserError, match="attribute scale"):
        make_creator(binding, RecordingCore()).create_plugin("attention", fields, "build")


def test_it_is_registered_once(binding):
    register_python_plugin(binding)
    creators = dict(binding.module.get_plugin_registry().creators)
    assert list(creators) == [("FlashAttention", "1", "toprl")]
    register_python_plugin(binding)
    assert binding.module.get_plugin_registry().creators == creators


def test_a_registry_that_refuses_is_told(binding):
    binding.module.get_plugin_registry().register_creator = lambda creator, namespace: False
    with pytest.raises(UserError, match="does not take"):
        register_python_plugin(binding)


def test_a_library_that_is_none_is_told(binding, tmp_path):
    (tmp_path / "text.so").write_text("no library")
    for path in (tmp_path / "missing.so", tmp_path / "text.so"):
        with pytest.raises(UserError, match=r"build it with engines/flash_attention/build\.sh"):
            register_python_plugin(binding, path)


def test_the_library_is_called_and_its_refusal_is_an_error(tmp_path):
    core = LibraryCore(build_core(tmp_path))
    call = AttentionCall("fp16", (1, 2, 70, 96), (1, 2, 70, 96), None, 0.1)
    with pytest.raises(CoreError, match="head dimension must be 64 or 128"):
        core.attend(call, [16, 32, 48], 64, 0, 0)


def test_without_triton_or_a_gpu_the_error_says_what_to_do():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    call = AttentionCall("fp16", SHAPES[0], SHAPES[1], None, 0.1)
    with pytest.raises(UserError, match=r"pip install|build\.sh"):
        TritonCore().attend(call, [16, 32, 48], 64, 0, 0)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("masked", [False, True])
def test_triton_computes_in_the_memory_it_is_given(kind, masked):
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    torch.manual_seed(0)
    query, key, value = (torch.randn(shape, device="cuda", dtype=getattr(torch, kind)) for shape in SHAPES[:3])
    mask = torch.rand(SHAPES[3], device="cuda") < 0.5
    call = AttentionCall(
        {"float16": "fp16", "bfloat16": "bf16"}[kind], SHAPES[0], SHAPES[1], SHAPES[3] if masked else None, 0.1
    )
    out, space = torch.zeros_like(query), torch.zeros(call.workspace_size + 1, dtype=torch.uint8, device="cuda")
    inputs = [tensor.data_ptr() for tensor in (query, key, value, mask)]
    TritonCore().attend(call, inputs, out.data_ptr(), space.data_ptr(), stream=0)
    torch.cuda.synchronize()
    truth = torch.nn.functional.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), mask if masked else None, scale=0.1, enable_gqa=True
    ).nan_to_num()
    assert (out.float() - truth).abs().max() < 0.03 < truth.abs().max()


@pytest.mark.gpu
def test_the_default_stream_is_not_exchanged():
    torch = pytest.importorskip("torch")
    other = torch.cuda.Stream()
    with torch.cuda.stream(other), plugin._on_stream(torch, 0):
        assert torch.cuda.current_stream().cuda_stream == 0
    with plugin._on_stream(torch, other.cuda_stream):
        assert torch.cuda.current_stream().cuda_stream == other.cuda_stream


@pytest.mark.trt
def test_tensorrt_reads_the_scale_later_than_it_is_given():
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    creator = make_creator(Binding("tensorrt_rtx", trt, trt.__version__), RecordingCore())
    scales = [place + 0.5 for place in range(100)]
    plugins = [
        creator.create_plugin("attention", [SimpleNamespace(name="scale", data=np.array([s]))], None) for s in scales
    ]
    other = [np.full(1, -1, np.float32) for _ in range(1000)]
    found = [float(plugin.get_fields_to_serialize()[0].data[0]) for plugin in plugins]
    assert (found, len(other)) == (scales, 1000)
    assert creator.field_names[0].name == "scale"


@pytest.mark.trt
def test_a_plan_is_built_with_it():
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    from tests.support.attention_plans import plugin_plan

    assert plugin_plan(None) == "built"
    assert plugin_plan(None, head_dim=80).startswith("exit 1")
