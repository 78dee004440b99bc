"""Making `toprl::FlashAttention` known to TensorRT: the plugin's shared library, or its Python route.

The Python route is for those without a C++ compiler: a plugin in Python whose work is done by the core library, or
without one by the Triton kernels, which need PyTorch for CUDA. A plan holds only the layer: whoever loads one registers
the plugin first, by either way.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from toprl_engines.attention.op import CREATOR
from toprl_engines.trt.binding import Binding
from toprl_engines.trt.options import check_plugin_library
from toprl_export.errors import UserError, require
from toprl_flash_attention.tiles import HEAD_DIMS, workspace_bound

LIBRARY = "libtoprl_flash_attention_plugin.so"
"""Its file in a bundle."""


def register_plugin(binding: Binding, library: Path | None) -> None:
    """Load the plugin's shared library, or without one register its Python route. Once a process is enough.

    Raises:
        UserError: the library is missing or TensorRT cannot load it, or the Python route lacks what it needs.
    """
    registry = binding.module.get_plugin_registry()
    if registry.get_creator(*CREATOR) is not None:
        return
    if library is None:
        register_python_plugin(binding)
        return
    check_plugin_library(library)
    reason = ""
    try:
        registry.load_library(str(library.resolve()))
    except (RuntimeError, OSError) as error:
        reason = str(error)
    if registry.get_creator(*CREATOR) is None:
        raise UserError(
            f"{binding.name} cannot load the plugin {library}: {reason or _what_is_wrong(library)}; build it again on "
            "this machine with engines/flash_attention/build.sh, or use --attention native"
        )


def _what_is_wrong(library: Path) -> str:
    """Why TensorRT did not take a library; it does not tell itself."""
    try:
        ctypes.CDLL(str(library.resolve()))
    except OSError as error:
        return str(error)
    return f"it holds no plugin {CREATOR[2]}::{CREATOR[0]}"


NAME, VERSION, NAMESPACE = CREATOR
MASK = 3
"""Place of the mask among the inputs."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class AttentionCall:
    """One call on contiguous tensors.

    Attributes:
        dtype: "fp16" or "bf16".
        query: shape of the queries and of the result, ``[b, heads, q, head_dim]``.
        key: shape of the keys and of the values, ``[b, kv_heads, k, head_dim]``.
        mask: shape of the mask, ``[b, heads, q, k]`` with 1 where one of the first three is broadcast, or None.
        scale: factor of the products.
    """

    dtype: str
    query: Shape
    key: Shape
    mask: Shape | None
    scale: float

    @property
    def workspace_size(self) -> int:
        """Bytes that do for this call and for all smaller ones."""
        masks = 0 if self.mask is None else self.mask[0] * self.mask[1]
        return workspace_bound(self.query[0], self.key[1], self.query[2], self.key[2], self.query[3], masks)


class AttentionCore(Protocol):
    """Who computes attention."""

    def attend(self, call: AttentionCall, inputs: Sequence[int], out: int, workspace: int, stream: int) -> None:
        """Queue a call on a CUDA stream; all are device addresses.

        Raises:
            UserError: what it needs is not installed.
        """
        ...


class LibraryCore:
    """The core library of engines/flash_attention, built by its build.sh.

    Raises:
        UserError: the library cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        from toprl_flash_attention.library import CoreLibrary

        try:
            self._library = CoreLibrary(path)
        except (OSError, AttributeError) as error:
            raise UserError(
                f"{path} is no FlashAttention library ({error}): build it with engines/flash_attention/build.sh"
            ) from error

    def attend(self, call: AttentionCall, inputs: Sequence[int], out: int, workspace: int, stream: int) -> None:
        from toprl_flash_attention.library import contiguous_params

        params = contiguous_params(call.dtype, call.query, call.key, call.mask, scale=call.scale)
        params.query, params.key, params.value = inputs[:MASK]
        params.mask = inputs[MASK] if call.mask is not None else None
        params.out, params.workspace, params.workspace_size = out, workspace, call.workspace_size
        self._library.forward(params, stream)


class TritonCore:
    """The Triton kernels, compiled on their first use."""

    def attend(self, call: AttentionCall, inputs: Sequence[int], out: int, workspace: int, stream: int) -> None:
        torch = self._torch()
        from toprl_flash_attention.kernel import flash_attention

        shapes = [call.query, call.key, call.key, *([] if call.mask is None else [call.mask])]
        kinds = [call.dtype] * MASK + ["bool"]
        tensors = [_borrowed(torch, *each) for each in zip(inputs, shapes, kinds, strict=False)]
        space = _borrowed(torch, workspace, (call.workspace_size,), "bytes") if call.workspace_size else None
        with _on_stream(torch, stream):
            result = _borrowed(torch, out, call.query, call.dtype)
            flash_attention(*tensors, scale=call.scale, out=result, workspace=space)

    def _torch(self) -> Any:
        torch = require("torch", "kernels")
        require("triton", "kernels")
        if not torch.cuda.is_available():
            raise UserError(
                "the FlashAttention plugin's Python route needs PyTorch for CUDA and a GPU: install it, or build the "
                "library with engines/flash_attention/build.sh and build with --plugin-library"
            )
        return torch


def _on_stream(torch: Any, stream: int) -> AbstractContextManager[Any]:
    # `ExternalStream` would make a new stream of the default one, whose address is 0.
    context: AbstractContextManager[Any] = torch.cuda.stream(torch.cuda.get_stream_from_external(stream))
    return context


def _borrowed(torch: Any, address: int, shape: Shape, kind: str) -> Any:
    """Device memory of TensorRT's as a tensor, without a copy."""
    # The interface has no name for bfloat16.
    code = {"fp16": "<f2", "bf16": "<i2", "bool": "|b1", "bytes": "|u1"}[kind]
    owner = type("DeviceMemory", (), {})()
    owner.__cuda_array_interface__ = {"shape": shape, "typestr": code, "data": (address, False), "version": 3}
    tensor = torch.as_tensor(owner, device="cuda")
    return tensor.view(torch.bfloat16) if kind == "bf16" else tensor


def register_python_plugin(binding: Binding, library: Path | None = None) -> None:
    """Register the plugin with TensorRT in this process; a second call does nothing.

    Building with TensorRT for RTX needs neither Triton nor a GPU. Running needs both, as does full TensorRT's builder,
    which times the layer; the error that TensorRT prints names what is missing.

    Args:
        binding: which TensorRT.
        library: the core library; None: the Triton kernels.

    Raises:
        UserError: the library cannot be loaded, or TensorRT does not take the plugin.
    """
    registry = binding.module.get_plugin_registry()
    if registry.get_creator(NAME, VERSION, NAMESPACE) is not None:
        return
    creator = make_creator(binding, TritonCore() if library is None else LibraryCore(library))
    if not registry.register_creator(creator, NAMESPACE):
        raise UserError(f"{binding.name} does not take the FlashAttention plugin: use --attention native")
    # The registry lives as long as the process, but does not own its creators.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(creator))


def make_creator(binding: Binding, core: AttentionCore) -> Any:
    """The creator that is registered, an `IPluginCreatorV3One`."""
    trt = binding.module
    layer = _derived(_Layer, trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)
    return _derived(_Creator, trt.IPluginCreatorV3One)(trt, lambda scale: layer(trt, scale, core))


def _derived(behaviour: type[Any], *bases: type[Any]) -> type[Any]:
    """``behaviour`` as a subclass of TensorRT's interfaces, each of which wants to be initialised by itself."""

    def initialise(self: Any, *arguments: Any) -> None:
        for base in bases:
            base.__init__(self)
        behaviour.__init__(self, *arguments)

    return type(f"FlashAttention{behaviour.__name__}", (behaviour, *bases), {"__init__": initialise})


def _scale_field(trt: Any, *scale: float) -> tuple[Any, Any]:
    """The field of the scale and the collection of it, which points into the field: both must be kept."""
    field = trt.PluginField("scale", np.array(scale, np.float32), trt.PluginFieldType.FLOAT32)
    return field, trt.PluginFieldCollection([field])


def _check_shapes(shapes: Sequence[Shape]) -> None:
    """Check that the inputs' shapes, in which -1 is not yet known, are compatible.

    Raises:
        UserError: they do not.
    """
    if not _fit(shapes):
        raise UserError(
            "toprl::FlashAttention takes query [batch, heads, q, 64 or 128], key and value [batch, kv_heads, k, the "
            "same] with kv_heads dividing heads, and a mask [batch, heads, q, k] with 1 where one of the first three "
            f"is broadcast, not {', '.join(str(list(shape)) for shape in shapes)}"
        )


def _fit(shapes: Sequence[Shape]) -> bool:
    if len(shapes) not in (MASK, MASK + 1) or any(len(shape) != 4 for shape in shapes):
        return False
    query, key, value, *masks = shapes
    if query[3] not in HEAD_DIMS or key[3] != query[3] or min(query[1], key[1]) < 1 or query[1] % key[1]:
        return False
    if not _agree(key[0], query[0]) or not all(map(_agree, key, value)):
        return False
    broadcast = [
        size == 1 or _agree(size, whole) for mask in masks for size, whole in zip(mask[:3], query, strict=False)
    ]
    return all(broadcast) and all(_agree(mask[3], key[2]) for mask in masks)


def _agree(left: int, right: int) -> bool:
    """Whether sizes, of which -1 is not yet known, may be equal."""
    return left == right or -1 in (left, right)


class _Creator:
    """What makes layers; `_derived` makes it one of TensorRT's."""

    def __init__(self, trt: Any, make: Callable[[float], Any]) -> None:
        self._make = make
        self.name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
        self._field, self._fields = _scale_field(trt)
        self.field_names = self._fields

    def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
        del name, phase
        scales = [float(np.asarray(field.data).reshape(-1)[0]) for field in fields if field.name == "scale"]
        if not scales or scales[0] <= 0:
            raise UserError("toprl::FlashAttention needs the attribute scale, a positive number")
        return self._make(scales[0])


class _Layer:
    """A layer; `_derived` makes it one of TensorRT's."""

    def __init__(self, trt: Any, scale: float, core: AttentionCore) -> None:
        self._trt, self._scale, self._core = trt, scale, core
        self._dtypes = {trt.DataType.HALF: "fp16", trt.DataType.BF16: "bf16"}
        self.plugin_name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
        self.num_outputs = 1
        self._field, self._fields = _scale_field(trt, scale)

    def get_capability_interface(self, kind: Any) -> Any:
        del kind
        return self

    def clone(self) -> Any:
        return type(self)(self._trt, self._scale, self._core)

    def attach_to_context(self, context: Any) -> Any:
        del context
        return self.clone()

    def get_fields_to_serialize(self) -> Any:
        return self._fields

    def get_output_data_types(self, inputs: Sequence[Any]) -> list[Any]:
        return [inputs[0]]

    def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any) -> list[Any]:
        del shape_inputs, builder
        return [self._trt.DimsExprs(inputs[0])]

    def supports_format_combination(self, place: int, tensors: Sequence[Any], inputs: int) -> bool:
        tensor = tensors[place].desc
        if tensor.format != self._trt.TensorFormat.LINEAR:
            return False
        if place == MASK and inputs > MASK:
            return bool(tensor.type == self._trt.DataType.BOOL)
        return tensor.type in self._dtypes and bool(tensor.type == tensors[0].desc.type)

    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        del outputs
        _check_shapes([_sizes(tensor.desc.dims) for tensor in inputs])

    def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        del outputs
        return self._call([tensor.max for tensor in inputs], inputs[0].desc.type).workspace_size

    def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        del outputs
        _check_shapes([_sizes(tensor.dims) for tensor in inputs])

    def set_tactic(self, tactic: int) -> None:
        del tactic

    def get_valid_tactics(self) -> list[int]:
        return []

    def enqueue(
        self,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        sources: Sequence[int],
        results: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        del outputs
        call = self._call([tensor.dims for tensor in inputs], inputs[0].type)
        self._core.attend(call, sources, results[0], workspace, stream)

    def _call(self, shapes: Sequence[Any], kind: Any) -> AttentionCall:
        query, key, _, *mask = map(_sizes, shapes)
        return AttentionCall(self._dtypes[kind], query, key, mask[0] if mask else None, self._scale)


def _sizes(dims: Any) -> Shape:
    return tuple(int(size) for size in dims)
