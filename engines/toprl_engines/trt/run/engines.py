"""A bundle's engines, loaded by the TensorRT and on the GPU that they were built for, and contexts that run them."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toprl_engines.trt.binding import Binding
from toprl_engines.trt.compiled import Compiled, check_compatible, copy_role
from toprl_engines.trt.native_calls import BuildLog, deferred_interrupt, last_error, make_log, out_of_device_memory
from toprl_engines.trt.plugin import register_plugin
from toprl_engines.trt.run.device import Block, GpuDevice, out_of_memory
from toprl_export.bundle import Bundle
from toprl_export.errors import ToprlError, UserError, require

_DTYPES: dict[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": require("ml_dtypes", "trt").bfloat16,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
"""NumPy's type for each of TensorRT's that an input or output of our graphs has; NumPy itself has no bfloat16."""

Shape = tuple[int, ...]


class EngineError(ToprlError):
    """TensorRT refused work that it was built for: a bug of ours or its own, not the user's mistake."""


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of an engine.

    Attributes:
        name: as in the graph.
        is_input: whether it is an input, not an output.
        dtype: NumPy's, with `ml_dtypes` for bfloat16.
        shape: -1 where a size is dynamic.
        on_host: whether TensorRT reads it from host memory, because shapes follow from its values.
        smallest: min of an input's sizes in the profile; those of ``shape`` for an output.
        largest: max of the same.
        values: min and max of an input's values on the host; None elsewhere.
    """

    name: str
    is_input: bool
    dtype: np.dtype[Any]
    shape: Shape
    on_host: bool
    smallest: Shape
    largest: Shape
    values: tuple[Shape, Shape] | None


class LoadedEngine:
    """A ``.plan`` file in the memory of the GPU.

    Args:
        binding: TensorRT.
        runtime: its `IRuntime`.
        log: the runtime's.
        path: the file.
        graph: TensorRT's copy of the graph, from which the weights are filled in; None where the plan has them.

    Attributes:
        name: of the file, without its ending.
        tensors: inputs and outputs by name.
        activation_bytes: device memory that a context works in.

    Raises:
        UserError: TensorRT does not take the file, or has no memory for it.
    """

    def __init__(self, binding: Binding, runtime: Any, log: BuildLog, path: Path, graph: Path | None = None) -> None:
        self.name = path.stem
        self._trt = binding.module
        self._log = log
        self._captures_itself = binding.rtx
        self._engine = _deserialize(binding, runtime, log, path)
        if graph is not None:
            refit_engine(binding, self._engine, graph, log)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self.tensors = {name: self._describe(name) for name in names}
        self.activation_bytes = int(self._engine.device_memory_size_v2)

    @property
    def inputs(self) -> list[TensorInfo]:
        """In the engine's order."""
        return [tensor for tensor in self.tensors.values() if tensor.is_input]

    @property
    def outputs(self) -> list[TensorInfo]:
        """In the engine's order."""
        return [tensor for tensor in self.tensors.values() if not tensor.is_input]

    def context(self, activations: Block, repeated: bool = False) -> EngineContext:
        """A context that works in ``activations``, which it may share with others on the same stream.

        Args:
            activations: at least ``activation_bytes``.
            repeated: TensorRT for RTX may capture the work as a CUDA graph, for the same sizes come again and again.

        Raises:
            UserError: there is too little device memory for what a context keeps beside its activations.
        """
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        if repeated and self._captures_itself:
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = self._engine.create_execution_context(config)
        if context is None:
            raise _no_memory(self.name)
        context.set_device_memory(activations.address, activations.size)
        return EngineContext(self.name, context, self._log, captures_itself=repeated and self._captures_itself)

    def _describe(self, name: str) -> TensorInfo:
        engine, trt = self._engine, self._trt
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        shape = tuple(engine.get_tensor_shape(name))
        on_host = engine.get_tensor_location(name) == trt.TensorLocation.HOST
        smallest = largest = shape
        if is_input and -1 in shape:
            ranges = engine.get_tensor_profile_shape(name, 0)
            smallest, largest = tuple(ranges[0]), tuple(ranges[-1])
        values = None
        if is_input and on_host:
            listed = engine.get_tensor_profile_values(0, name)
            values = (tuple(listed[0]), tuple(listed[-1])) if listed else None
        dtype = np.dtype(_DTYPES[engine.get_tensor_dtype(name).name])
        return TensorInfo(name, is_input, dtype, shape, on_host, smallest, largest, values)


class EngineContext:
    """One engine made ready for one set of sizes and addresses at a time.

    All methods raise `EngineError` where TensorRT refuses, and `UserError` where it is out of memory.
    """

    def __init__(self, name: str, context: Any, log: BuildLog, captures_itself: bool) -> None:
        self._name = name
        self._context = context
        self._log = log
        self.captures_itself = captures_itself

    def set_shape(self, name: str, shape: Shape) -> None:
        """Give an input its sizes, which the caller has checked."""
        self._check(self._context.set_input_shape(name, shape), f"the shape {shape} of {name}")

    def bind(self, name: str, address: int) -> None:
        """Say where an input is read from or an output is written to."""
        self._check(self._context.set_tensor_address(name, address), f"the address of {name}")

    def infer_shapes(self) -> None:
        """Work out the outputs' sizes, once all inputs have theirs (and those on the host their addresses)."""
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as error:
            raise EngineError(f"TensorRT cannot work out shapes ({self._name}): {error}") from error
        self._check(not missing, f"its inputs without {', '.join(missing)}")

    def shape(self, name: str) -> Shape:
        """The sizes of an output, after :meth:`infer_shapes`."""
        shape = tuple(self._context.get_tensor_shape(name))
        self._check(-1 not in shape, f"{name} without sizes")
        return shape

    def enqueue(self, stream: int) -> None:
        """Queue one run."""
        self._check(self._context.execute_async_v3(stream), "to run")

    def _check(self, taken: bool, what: str) -> None:
        if taken:
            return
        reason = last_error(self._log)
        if out_of_device_memory(reason):
            raise _no_memory(self._name)
        raise EngineError(f"TensorRT refused {what} ({self._name}): {reason}")


def _no_memory(name: str) -> UserError:
    return UserError(
        f"TensorRT has no device memory left to run {name}: stop what else uses the GPU, or build the bundle with a "
        "smaller --max-batch"
    )


def _deserialize(binding: Binding, runtime: Any, log: BuildLog, path: Path) -> Any:
    # Mapped, because a plan holds the weights and is read once.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        reason = last_error(log)
        fix = (
            "stop what else uses the GPU" if out_of_device_memory(reason) else "build the bundle again on this machine"
        )
        raise UserError(f"{binding.name} {binding.version} cannot load {path}: {reason}; {fix}")
    return engine


def refit_engine(binding: Binding, engine: Any, graph: Path, log: BuildLog) -> None:
    """Give ``engine`` the weights of the graph that it was built from.

    Args:
        binding: TensorRT.
        engine: a deserialized plan that is stripped or refittable.
        graph: TensorRT's copy of the graph (role ``refit_NAME`` of the bundle), the file of weights beside it.
        log: of the runtime that loaded the engine.

    Raises:
        UserError: the weights do not fit.
    """
    trt = binding.module
    refitter = trt.Refitter(engine, log)
    if trt.OnnxParserRefitter(refitter, log).refit_from_file(str(graph)) and refitter.refit_cuda_engine():
        return
    raise UserError(
        f"{binding.name} cannot fill the weights of {graph} into its plan: {last_error(log)}; build the bundle again"
    )


def open_engines(bundle: Bundle, roles: Sequence[str], binding: Binding, device: GpuDevice) -> list[LoadedEngine]:
    """Load the engines of these roles, in their order.

    Raises:
        UserError: they were built for another GPU or TensorRT, their plugin cannot be loaded, TensorRT does not take
            them, or the device has too little memory.
        KeyboardInterrupt: Ctrl-C was pressed; loading stops between two engines.
    """
    compiled = Compiled.from_details(bundle.manifest.engine.details)
    check_compatible(compiled, binding, device)
    if compiled.attention == "plugin":
        register_plugin(binding, _plugin_library(bundle))
    paths = [bundle.path(role) for role in roles]
    weights = [bundle.path("weights")] if compiled.weight_stripped else []
    # The GPU must hold at least the plans, or the weights that they are filled with.
    size = sum(path.stat().st_size for path in [*paths, *weights])
    if size > device.free_bytes():
        raise out_of_memory("the engines' weights", size, device.free_bytes(), device.name)
    log = make_log(binding.module)
    runtime = _runtime(binding, log)
    # A plan for later versions brings the part of TensorRT that runs it; the bundle's digests vouch for it.
    runtime.engine_host_code_allowed = compiled.version_compatible
    engines = []
    for role, path in zip(roles, paths, strict=True):
        graph = bundle.path(copy_role(role)) if compiled.weight_stripped else None
        with deferred_interrupt():  # a KeyboardInterrupt raised while TensorRT writes to the log would be swallowed
            engines.append(LoadedEngine(binding, runtime, log, path, graph))
    return engines


def _plugin_library(bundle: Bundle) -> Path | None:
    """The library that the bundle brings; None where its plans were built by the plugin's Python route."""
    listed = [file.path for file in bundle.manifest.files if file.role == "plugin"]
    return bundle.dir / listed[0] if listed else None


def _runtime(binding: Binding, log: BuildLog) -> Any:
    try:
        return binding.module.Runtime(log)
    except TypeError as error:  # what a C++ factory's null pointer becomes
        raise UserError(
            f"{binding.name} {binding.version} cannot start: {last_error(log)}; check the GPU, and that its driver is "
            "new enough for this TensorRT"
        ) from error
