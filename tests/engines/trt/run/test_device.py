"""The CUDA device: errors by a stand-in for NVIDIA's bindings, the rest on a GPU where there is one."""

from __future__ import annotations

import gc
from enum import Enum
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from tests.support.fake_device import FakeDevice
from toprl_engines.trt.run import device as device_module
from toprl_engines.trt.run.device import Block, CaptureError, CudaDevice, CudaError, GpuDevice, Rows
from toprl_export.errors import MissingExtraError, UserError


class Status(Enum):
    """By NVIDIA's names."""

    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorStreamCaptureInvalidated = 901


class FakeCuda:
    """`cuda.bindings.runtime` with one GPU; what ``fails`` names returns that status."""

    cudaError_t = Status
    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    RETURNS: ClassVar = {
        "cudaGetDeviceCount": (1,),
        "cudaGetDeviceProperties": (SimpleNamespace(name=b"NVIDIA H200\0\0", major=9, minor=0),),
        "cudaStreamCreateWithFlags": (11,),
        "cudaMalloc": (4096,),
        "cudaMemGetInfo": (2**30, 2**34),
        "cudaStreamEndCapture": ("graph",),
        "cudaGraphInstantiate": ("executable",),
        "cudaGetErrorString": (b"a reason",),
    }

    def __init__(self, **fails: Status) -> None:
        self.fails = fails
        self.calls: list[str] = []

    def __getattr__(self, name: str):
        def call(*arguments):
            self.calls.append(name)
            values = self.RETURNS.get(name, ())
            status = self.fails.get(name, Status.cudaSuccess)
            return (status, *(values if status is Status.cudaSuccess else [None] * len(values)))

        return call


def opened(monkeypatch, **fails: Status) -> tuple[CudaDevice, FakeCuda]:
    stand_in = FakeCuda(**fails)
    monkeypatch.setattr(device_module, "require", lambda module, extra: stand_in)
    return CudaDevice(), stand_in


def test_says_which_gpu_it_is(monkeypatch):
    device, _ = opened(monkeypatch)
    assert (device.name, device.sm, device.stream, device.free_bytes()) == ("NVIDIA H200", "9.0", 11, 2**30)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (Status.cudaErrorNoDevice, "needs an NVIDIA GPU, and this process sees none"),
        (Status.cudaErrorInsufficientDriver, "driver is missing or older"),
    ],
)
def test_without_a_gpu_one_line_says_so(monkeypatch, status, message):
    with pytest.raises(UserError, match=message):
        opened(monkeypatch, cudaGetDeviceCount=status)


def test_too_little_memory_names_what_it_was_for(monkeypatch):
    device, _ = opened(monkeypatch, cudaMalloc=Status.cudaErrorMemoryAllocation)
    with pytest.raises(UserError, match=r"caches need 3\.00 GiB of device memory, but 1\.00 GiB are free on NVIDIA H"):
        device.allocate(3 * 2**30, "caches")


def test_any_other_failure_is_no_mistake_of_the_user(monkeypatch):
    device, _ = opened(monkeypatch, cudaStreamSynchronize=Status.cudaErrorNoDevice)
    with pytest.raises(CudaError, match="cudaStreamSynchronize: a reason on NVIDIA H200"):
        device.synchronize()


def test_what_cannot_be_captured_leaves_the_stream_usable(monkeypatch):
    device, stand_in = opened(monkeypatch)

    def work() -> None:
        raise RuntimeError("allocates")

    with pytest.raises(CaptureError, match="allocates"):
        device.capture(work)
    assert stand_in.calls[-2:] == ["cudaStreamEndCapture", "cudaGraphDestroy"]

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        device.capture(interrupted)
    assert stand_in.calls[-1] == "cudaStreamEndCapture"
    device, stand_in = opened(monkeypatch, cudaStreamEndCapture=Status.cudaErrorStreamCaptureInvalidated)
    with pytest.raises(CaptureError, match="cudaStreamEndCapture: a reason"):
        device.capture(lambda: None)


def test_captured_work_is_launched_and_freed(monkeypatch):
    device, stand_in = opened(monkeypatch)
    graph = device.capture(lambda: None)
    graph.launch()
    assert stand_in.calls[-1] == "cudaGraphLaunch"
    del graph
    gc.collect()
    assert stand_in.calls[-1] == "cudaGraphExecDestroy"


def test_the_stream_ends_with_the_device_and_the_device_with_its_last_memory(monkeypatch):
    device, stand_in = opened(monkeypatch)
    block = Block(device, 1, "test")
    del device
    gc.collect()
    assert "cudaStreamDestroy" not in stand_in.calls
    del block
    gc.collect()
    assert stand_in.calls[-2:] == ["cudaFree", "cudaStreamDestroy"]


def test_without_the_bindings_the_extra_is_named(monkeypatch):
    def missing(module, extra):
        raise MissingExtraError(module.partition(".")[0], extra)

    monkeypatch.setattr(device_module, "require", missing)
    with pytest.raises(MissingExtraError, match=r"toprl-export\[trt\]"):
        CudaDevice()


@pytest.mark.trt
def test_nvidias_bindings_on_a_machine_without_a_gpu():
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        CudaDevice()


@pytest.mark.trt
def test_the_stand_in_has_no_name_that_nvidias_bindings_lack():
    runtime = pytest.importorskip("cuda.bindings.runtime")
    for name in (*FakeCuda.RETURNS, *(status.name for status in Status)):
        assert hasattr(runtime, name) or hasattr(runtime.cudaError_t, name)


def scramble(device: GpuDevice) -> np.ndarray:
    """All that a device does, and what is left in memory."""
    block = Block(device, 4096, "test")
    up = np.arange(600, dtype=np.uint8)
    pinned = device.pinned(600)
    pinned[:] = 7
    work = []

    def queue() -> None:
        device.fill_rows(Rows(block.address, 4096), 0, 4096, 1)
        device.upload(block.address + 256, pinned)
        device.copy_rows(Rows(block.address + 2048, 100), Rows(block.address + 300, 40), 30, 12)
        device.fill_rows(Rows(block.address + 2050, 100), 3, 5, 12)
        work.append(1)

    queue()
    graph = device.capture(queue)
    device.synchronize()
    pinned[:] = up
    graph.launch()
    device.upload(block.address + 3500, up[:100].copy())
    found = np.zeros(4096, dtype=np.uint8)
    device.download(found, block.address)
    device.synchronize()
    assert work == [1, 1]
    return found


def test_work_on_the_fake_device_happens_in_order():
    found = scramble(FakeDevice())
    assert list(found[256:260]) == [0, 1, 2, 3] and found[3599] == 99
    assert list(found[2048:2056]) == [44, 45, 3, 3, 3, 3, 3, 51]


@pytest.mark.gpu
def test_a_real_device_does_what_the_fake_one_does():
    pytest.importorskip("cuda.bindings.runtime")
    assert np.array_equal(scramble(CudaDevice()), scramble(FakeDevice()))
