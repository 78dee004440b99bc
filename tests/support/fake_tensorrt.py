"""TensorRT's Python interface as far as the session uses it, computed by ONNX Runtime on a `FakeDevice`.

A plan is a JSON text: the ONNX file that computes, the floating types of caches and of the rest at its border, and for
each input the smallest and largest sizes. What real TensorRT forbids is an error here: sizes outside of the profile,
addresses that are not aligned, a captured graph whose context was changed, capturing a context that has never run with
these sizes.
"""

from __future__ import annotations

import ctypes
import enum
import json
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnxruntime

from tests.support.fake_device import FakeDevice
from toprl_engines.trt.binding import Binding
from toprl_engines.trt.run.device import ALIGNMENT


class DataType(enum.Enum):
    FLOAT = np.dtype(np.float32)
    HALF = np.dtype(np.float16)
    BF16 = np.dtype(ml_dtypes.bfloat16)
    INT64 = np.dtype(np.int64)
    BOOL = np.dtype(np.bool_)


TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])
ExecutionContextAllocationStrategy = enum.Enum(
    "ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"]
)
CudaGraphStrategy = enum.Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])

_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}
HOST_INPUTS = ("keep_counts",)
ACTIVATION_BYTES = 1000
VERSION = "11.2.0.4"


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)
    Severity = int

    def __init__(self) -> None:
        pass


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan: Any) -> ICudaEngine | None:
        content = bytes(plan)
        if not content.startswith(b"{"):
            self.logger.log(ILogger.ERROR, "the plan's magic tag does not match")
            return None
        return ICudaEngine(json.loads(content), self.logger)


class IPluginRegistry:
    """Takes files that begin like a shared library; the one known plugin comes with the first of them."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def get_creator(self, name: str, version: str, plugin_namespace: str = "") -> object | None:
        known = self.loaded and (name, version, plugin_namespace) == ("FlashAttention", "1", "toprl")
        return object() if known else None

    def load_library(self, plugin_path: str) -> object | None:
        assert not self.loaded, "loaded twice, which TensorRT refuses"
        if not Path(plugin_path).read_bytes().startswith(b"\x7fELF"):
            return None
        self.loaded.append(plugin_path)
        return object()


class IRuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy


class ICudaEngine:
    device: FakeDevice
    """Where everything runs; set by `fake_binding`."""

    def __init__(self, plan: dict[str, Any], logger: ILogger) -> None:
        self.logger = logger
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(plan["onnx"], options, providers=["CPUExecutionProvider"])
        self.ranges: dict[str, list[list[int]]] = plan["ranges"]
        self.values: dict[str, list[list[int]]] = plan["values"]
        self.capturable: bool = plan["capturable"]
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self.cache_dtype, self.other_dtype = (_floating(plan[kind]) for kind in ("cache_dtype", "other_dtype"))
        self.names = [*self.inputs, *reversed(self.outputs)]  # TensorRT promises no order
        self.device_memory_size_v2 = ACTIVATION_BYTES

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self.dtype(name))

    def dtype(self, name: str) -> np.dtype:
        value = self.inputs.get(name) or self.outputs[name]
        dtype = np.dtype(_TYPES[value.type])
        if dtype != np.float32:
            return dtype
        return self.cache_dtype if name.removeprefix("new_").startswith(("key_", "value_")) else self.other_dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        value = self.inputs.get(name) or self.outputs[name]
        return tuple(size if isinstance(size, int) else -1 for size in value.shape)

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name in HOST_INPUTS else TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        smallest, largest = self.ranges[name]
        return [smallest, smallest, largest]

    def get_tensor_profile_values(self, profile_index: int, name: str) -> list[list[int]]:
        smallest, largest = self.values[name]
        return [smallest, smallest, largest]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, config: IRuntimeConfig) -> IExecutionContext:
        assert config.strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return IExecutionContext(self, config.cuda_graph_strategy is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE)


class IExecutionContext:
    created: ClassVar[list[IExecutionContext]] = []
    """All since the last `fake_binding`."""

    def __init__(self, engine: ICudaEngine, captures: bool) -> None:
        self.engine = engine
        self.captures = captures
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.activations: tuple[int, int] | None = None
        self.changes = 0
        self.ran_at: int | None = None
        IExecutionContext.created.append(self)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2 and memory % ALIGNMENT == 0
        self.engine.device.view(memory, size)
        self.activations = (memory, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        known = self.engine.get_tensor_shape(name)
        smallest, largest = self.engine.ranges.get(name, [known, known])
        if len(shape) != len(known) or not all(a <= b <= c for a, b, c in zip(smallest, shape, largest, strict=True)):
            return False
        self.changes += self.shapes.get(name) != tuple(shape)
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in self.engine.names, name
        if name not in HOST_INPUTS:
            assert memory % ALIGNMENT == 0, f"{name} is not aligned"
        self.changes += self.addresses.get(name) != memory
        self.addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        engine = self.engine
        missing = [name for name in engine.inputs if name not in self.shapes]
        missing += [name for name in HOST_INPUTS if name in engine.inputs and name not in self.addresses]
        if not missing:
            # Sizes follow from sizes and from what is on the host alone, whatever the others hold.
            feeds = {name: np.zeros(self.shapes[name], _TYPES[engine.inputs[name].type]) for name in engine.inputs}
            self._make_plausible(feeds)
            found = engine.session.run(list(engine.outputs), feeds)
            self.shapes |= {name: array.shape for name, array in zip(engine.outputs, found, strict=True)}
        return missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def execute_async_v3(self, stream_handle: int) -> bool:
        device = self.engine.device
        assert stream_handle == device.stream and self.activations is not None
        assert set(self.addresses) == set(self.engine.names), "tensors without an address"
        if device.capturing:
            assert not self.captures, "captured twice"
            if not self.engine.capturable or self.ran_at != self.changes:
                return False
        self.ran_at = changes = self.changes
        host = {name: self._read_host(name) for name in HOST_INPUTS if name in self.engine.inputs}

        device.enqueue(lambda: self._run(host, changes))
        return True

    def _run(self, host: dict[str, np.ndarray], changes: int) -> None:
        assert changes == self.changes, "the context was changed before its work ran"
        engine = self.engine
        feeds = {name: host[name] if name in host else self._read(name) for name in engine.inputs}
        for name, array in zip(engine.outputs, engine.session.run(list(engine.outputs), feeds), strict=True):
            assert array.shape == self.shapes[name]
            flat = np.ascontiguousarray(array.astype(engine.dtype(name))).reshape(-1)
            engine.device.view(self.addresses[name], flat.nbytes)[:] = flat.view(np.uint8)

    def _read(self, name: str) -> np.ndarray:
        dtype, shape = self.engine.dtype(name), self.shapes[name]
        memory = self.engine.device.view(self.addresses[name], prod(shape) * dtype.itemsize)
        return memory.copy().view(dtype).reshape(shape).astype(_TYPES[self.engine.inputs[name].type])

    def _read_host(self, name: str) -> np.ndarray:
        shape = self.shapes[name]
        content = ctypes.string_at(self.addresses[name], prod(shape) * 8)
        return np.frombuffer(content, dtype=np.int64).reshape(shape).copy()

    def _make_plausible(self, feeds: dict[str, np.ndarray]) -> None:
        """Indices that a prompt could have, and the real counts."""
        for name in HOST_INPUTS:
            if name in feeds:
                feeds[name] = self._read_host(name)
        if "visual_index" in feeds:
            visual = feeds["visual_index"].shape[1]
            places = np.tile(np.arange(feeds["input_ids"].shape[1]), (len(feeds["input_ids"]), 1))
            feeds |= {"visual_index": places[:, :visual], "text_index": places[:, visual:]}


def write_plan(
    path: Path,
    onnx: Path,
    ranges: dict[str, tuple[list[int], list[int]]],
    values: dict[str, tuple[list[int], list[int]]],
    cache_dtype: str = "float32",
    other_dtype: str = "float32",
    capturable: bool = True,
) -> None:
    """Write what `Runtime` takes for an engine."""
    types = {"cache_dtype": cache_dtype, "other_dtype": other_dtype}
    path.write_text(
        json.dumps({"onnx": str(onnx), "ranges": ranges, "values": values, "capturable": capturable} | types)
    )


def _floating(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def fake_binding(device: FakeDevice, name: str = "tensorrt") -> Binding:
    """A TensorRT that runs on ``device``."""
    ICudaEngine.device = device
    IExecutionContext.created = []
    names = ("DataType", "TensorIOMode", "TensorLocation", "ExecutionContextAllocationStrategy", "CudaGraphStrategy")
    offered = {one: globals()[one] for one in (*names, "ILogger", "Runtime")}
    registry = IPluginRegistry()
    return Binding(name, SimpleNamespace(**offered, get_plugin_registry=lambda: registry), VERSION)
