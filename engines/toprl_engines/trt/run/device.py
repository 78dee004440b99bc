"""A GPU as sessions use it: memory, copies between rows, one stream of work, captured graphs; and CUDA's own."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from toprl_export.errors import ToprlError, UserError, require

ALIGNMENT = 256
"""Bytes: where TensorRT wants every tensor to begin."""
GIB = 1 << 30


@dataclass(frozen=True)
class Rows:
    """Equally spaced rows in device memory: the first begins at ``address``, the next ``pitch`` bytes further."""

    address: int
    pitch: int


class CaptureError(ToprlError):
    """Work could not be captured; it can still be run as it is."""


class CapturedGraph(Protocol):
    """Work that was captured, to be run again with the same addresses and sizes."""

    def launch(self) -> None:
        """Queue the work on the device's stream."""
        ...


class GpuDevice(Protocol):
    """One GPU and one stream on it. Everything but allocation is queued and done in order.

    Attributes:
        name: what its maker calls it.
        sm: compute capability, like "8.9".
        stream: handle of the stream.
    """

    name: str
    sm: str
    stream: int

    def free_bytes(self) -> int:
        """Device memory that nobody uses."""
        ...

    def allocate(self, size: int, what: str) -> int:
        """Address of ``size`` fresh bytes, aligned to ``ALIGNMENT``; ``what`` they are for stands in the message.

        Raises:
            UserError: there is not that much left.
        """
        ...

    def release(self, address: int) -> None:
        """Give memory back; waits until no queued work can use it."""
        ...

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """``uint8 [size]`` of host memory that copies run from and to without a detour, as long as it is referenced."""
        ...

    def upload(self, address: int, source: NDArray[Any]) -> None:
        """Queue a copy of a C-contiguous array. Only pinned memory must stay as it is until the copy has run."""
        ...

    def download(self, target: NDArray[Any], address: int) -> None:
        """Queue a copy into a C-contiguous array, which holds it after :meth:`synchronize`."""
        ...

    def copy_rows(self, target: Rows, source: Rows, width: int, height: int) -> None:
        """Queue a copy of ``width`` bytes in each of ``height`` rows; the two must not overlap."""
        ...

    def fill_rows(self, target: Rows, value: int, width: int, height: int) -> None:
        """Queue setting ``width`` bytes in each of ``height`` rows to ``value``."""
        ...

    def synchronize(self) -> None:
        """Wait until everything queued has run."""
        ...

    def capture(self, work: Callable[[], object]) -> CapturedGraph:
        """Record what ``work`` queues, without running it.

        Raises:
            CaptureError: it does what cannot be captured.
        """
        ...


class Block:
    """Device memory that is given back when it is released, or when the last reference to it goes.

    Attributes:
        address: where it begins.
        size: its bytes.
    """

    def __init__(self, device: GpuDevice, size: int, what: str) -> None:
        self.size = max(size, ALIGNMENT)
        self.address = device.allocate(self.size, what)
        # At the end of the process the driver takes everything back, and may be gone before us.
        self._release = weakref.finalize(self, device.release, self.address)
        self._release.atexit = False

    def release(self) -> None:
        """Release the memory now; a second call does nothing."""
        self._release()


def aligned(size: int) -> int:
    """The next multiple of ``ALIGNMENT``."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def offsets_of(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where in one block buffers of these sizes in bytes begin, each aligned, and the bytes of them all."""
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += aligned(size)
    return offsets, end


class CudaError(ToprlError):
    """A CUDA call failed for a reason that no user can mend."""


class CudaDevice:
    """The first GPU that the process may use, and a stream of its own on it; see `GpuDevice`.

    Raises:
        MissingExtraError: `cuda-bindings` is not installed.
        UserError: there is no NVIDIA GPU, or its driver is too old.
    """

    def __init__(self) -> None:
        self._cuda = require("cuda.bindings.runtime", "trt")
        self._check_gpu()
        self._call("cudaSetDevice", 0)
        facts = self._call("cudaGetDeviceProperties", 0)
        self.name: str = facts.name.decode().rstrip("\0")
        self.sm = f"{facts.major}.{facts.minor}"
        # A stream that does not wait for the default one: TensorRT synchronises the device when given that.
        self.stream = int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))
        weakref.finalize(self, self._cuda.cudaStreamDestroy, self.stream).atexit = False

    def free_bytes(self) -> int:
        free, _ = self._call("cudaMemGetInfo")
        return int(free)

    def allocate(self, size: int, what: str) -> int:
        status, address = self._cuda.cudaMalloc(size)
        if status == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
            raise out_of_memory(what, size, self.free_bytes(), self.name)
        self._check("cudaMalloc", status)
        return int(address)

    def release(self, address: int) -> None:
        self._call("cudaFree", address)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        address = int(self._call("cudaHostAlloc", size, self._cuda.cudaHostAllocDefault))
        memory = (ctypes.c_uint8 * size).from_address(address)
        # Arrays and their views keep `memory` alive, not the allocation: it ends with the last of them.
        weakref.finalize(memory, self._cuda.cudaFreeHost, address).atexit = False
        return np.ctypeslib.as_array(memory)

    def upload(self, address: int, source: NDArray[Any]) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, source.ctypes.data, source.nbytes, kind, self.stream)

    def download(self, target: NDArray[Any], address: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.ctypes.data, address, target.nbytes, kind, self.stream)

    def copy_rows(self, target: Rows, source: Rows, width: int, height: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        places = target.address, target.pitch, source.address, source.pitch
        self._call("cudaMemcpy2DAsync", *places, width, height, kind, self.stream)

    def fill_rows(self, target: Rows, value: int, width: int, height: int) -> None:
        self._call("cudaMemset2DAsync", target.address, target.pitch, value, width, height, self.stream)

    def synchronize(self) -> None:
        self._call("cudaStreamSynchronize", self.stream)

    def capture(self, work: Callable[[], object]) -> CapturedGraph:
        cuda = self._cuda
        self._call("cudaStreamBeginCapture", self.stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        failure: Exception | None = None
        try:
            work()
        except (ToprlError, RuntimeError) as error:
            failure = error
        finally:  # whatever happened, or the stream would stay in its capturing state
            ended, graph = cuda.cudaStreamEndCapture(self.stream)
        if ended != cuda.cudaError_t.cudaSuccess:
            raise CaptureError(self._describe("cudaStreamEndCapture", ended)) from failure
        try:
            if failure is not None:
                raise CaptureError(str(failure)) from failure
            made, executable = cuda.cudaGraphInstantiate(graph, 0)
        finally:
            cuda.cudaGraphDestroy(graph)
        if made != cuda.cudaError_t.cudaSuccess:
            raise CaptureError(self._describe("cudaGraphInstantiate", made))
        return _CudaGraph(self, executable)

    def launch(self, executable: Any) -> None:
        """Queue an instantiated graph."""
        self._call("cudaGraphLaunch", executable, self.stream)

    def discard(self, executable: Any) -> None:
        """Free an instantiated graph."""
        self._cuda.cudaGraphExecDestroy(executable)

    def _check_gpu(self) -> None:
        status, count = self._cuda.cudaGetDeviceCount()
        errors = self._cuda.cudaError_t
        if status == errors.cudaErrorInsufficientDriver:
            raise UserError(
                "this needs an NVIDIA GPU, and none can be used: its driver is missing or older than the CUDA of "
                "cuda-bindings; run it on a machine with a GPU, or update the driver"
            )
        if status == errors.cudaErrorNoDevice or not count:
            raise UserError("this needs an NVIDIA GPU, and this process sees none: run it on a machine that has one")
        self._check("cudaGetDeviceCount", status)

    def _call(self, name: str, *arguments: Any) -> Any:
        """What a CUDA function returns after its status: nothing, one value or a tuple."""
        status, *values = getattr(self._cuda, name)(*arguments)
        self._check(name, status)
        return values[0] if len(values) == 1 else tuple(values)

    def _check(self, name: str, status: Any) -> None:
        if status != self._cuda.cudaError_t.cudaSuccess:
            raise CudaError(self._describe(name, status))

    def _describe(self, name: str, status: Any) -> str:
        _, text = self._cuda.cudaGetErrorString(status)
        return f"{name}: {text.decode() if text else status} on {getattr(self, 'name', 'the GPU')}"


class _CudaGraph:
    """A graph that CUDA has made ready to be launched."""

    def __init__(self, device: CudaDevice, executable: Any) -> None:
        self._device = device
        self._executable = executable
        weakref.finalize(self, device.discard, executable).atexit = False

    def launch(self) -> None:
        self._device.launch(self._executable)


def out_of_memory(what: str, size: int, free: int, gpu: str) -> UserError:
    """The error for memory that is not there; sizes in bytes."""
    return UserError(
        f"{what} need {size / GIB:.2f} GiB of device memory, but {free / GIB:.2f} GiB are free on {gpu}: stop what "
        "else uses the GPU, or build the bundle with a smaller --max-batch"
    )
