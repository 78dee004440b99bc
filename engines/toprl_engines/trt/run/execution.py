"""Running engines: vision and prefill with other sizes every time, decode with the same ones step after step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toprl_engines.trt.run.device import Block, CapturedGraph, CaptureError, GpuDevice, offsets_of
from toprl_engines.trt.run.engines import EngineContext, LoadedEngine, Shape, TensorInfo
from toprl_engines.trt.run.memory import CacheLayout


class VariableGraph:
    """One engine with device buffers for its inputs and outputs, allocated once at their largest sizes.

    Args:
        device: where it runs.
        engine: what runs.
        activations: memory to work in.
        elsewhere: tensors whose buffers belong to others, with their addresses; those of outputs may be given later.
        largest_output: the largest size of an output's dynamic axes: the batch, and any other.
    """

    def __init__(
        self,
        device: GpuDevice,
        engine: LoadedEngine,
        activations: Block,
        elsewhere: Mapping[str, int | None],
        largest_output: tuple[int, int],
    ) -> None:
        self._device = device
        self._engine = engine
        self._context = engine.context(activations)
        own = [tensor for tensor in engine.tensors.values() if tensor.name not in elsewhere and not tensor.on_host]
        offsets, size = offsets_of({tensor.name: _size(tensor, largest_output) for tensor in own})
        self._block = Block(device, size, f"inputs and outputs of {engine.name}")
        self.addresses = {name: self._block.address + offset for name, offset in offsets.items()}
        self.addresses |= {name: address for name, address in elsewhere.items() if address is not None}
        self._fed: list[NDArray[Any]] = []

    def prepare(self, feeds: Mapping[str, NDArray[Any]], resident: Collection[str] = ()) -> None:
        """Queue the inputs, and work out what comes out. Those named ``resident`` are in their buffers already."""
        self._fed.clear()
        for tensor in self._engine.inputs:
            # Kept: TensorRT reads what is on the host where it is, and a copy may still be under way.
            feed = np.array(feeds[tensor.name], dtype=tensor.dtype, order="C", copy=None)
            self._fed.append(feed)
            self._context.set_shape(tensor.name, feed.shape)
            self._context.bind(tensor.name, feed.ctypes.data if tensor.on_host else self.addresses[tensor.name])
            if not tensor.on_host and tensor.name not in resident:
                self._device.upload(self.addresses[tensor.name], feed)
        self._context.infer_shapes()

    def shape(self, name: str) -> Shape:
        """The sizes of an output, once prepared."""
        return self._context.shape(name)

    def run(self, elsewhere: Mapping[str, int] | None = None) -> None:
        """Queue one run; outputs that are written to other places than the last time are given with their addresses."""
        addresses = {**self.addresses, **(elsewhere or {})}
        for tensor in self._engine.outputs:
            self._context.bind(tensor.name, addresses[tensor.name])
        self._context.enqueue(self._device.stream)

    def close(self) -> None:
        """Give the buffers back."""
        self._block.release()

    def fetch(self, name: str) -> NDArray[Any]:
        """Queue the copy of an output that has a buffer here; it is there once the device has been waited for."""
        found = np.empty(self.shape(name), dtype=self._engine.tensors[name].dtype)
        self._device.download(found, self.addresses[name])
        return found


def _size(tensor: TensorInfo, largest_output: tuple[int, int]) -> int:
    rows, others = largest_output
    sizes = [
        size if size >= 0 else rows if axis == 0 else others
        for axis, size in enumerate(tensor.largest if tensor.is_input else tensor.shape)
    ]
    return prod(sizes) * tensor.dtype.itemsize


STEPS_KEPT = 16
"""Captured graphs that are kept; each is for one batch, one length per group and one cache memory."""


class DecodeRunner:
    """Runs the decode engine over `CacheLayout`.

    Token and position go up in one copy, the logits come down in one; the copies are part of the captured graph.
    """

    def __init__(self, device: GpuDevice, engine: LoadedEngine, max_batch: int, activations: Block) -> None:
        self._device = device
        self._engine = engine
        self._activations = activations
        self._steps: OrderedDict[tuple[int, ...], _Step] = OrderedDict()
        logits = engine.tensors["logits"]
        self._vocabulary = logits.shape[-1]
        sizes = {name: max_batch * engine.tensors[name].dtype.itemsize for name in ("token", "position")}
        self._offsets, self._inputs_size = offsets_of(sizes)
        self._logits_offset = self._inputs_size
        logits_size = max_batch * self._vocabulary * logits.dtype.itemsize
        self._buffers = Block(device, self._logits_offset + logits_size, "decode's inputs and logits")
        self._inputs = device.pinned(self._inputs_size)
        self._logits = device.pinned(logits_size).view(logits.dtype)

    def run(self, cache: CacheLayout, token: NDArray[np.int64], position: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append a token a row to a cache that is not full.

        Args:
            cache: of the request.
            token: ``[b]``.
            position: ``[b]``.

        Returns:
            logits of the next, ``[b, V]``.
        """
        for name, values in (("token", token), ("position", position)):
            dtype, start = self._engine.tensors[name].dtype, self._offsets[name]
            self._inputs[start : start + cache.batch * dtype.itemsize].view(dtype)[:] = values
        self._step(cache).run()
        cache.store.append(cache)
        self._device.synchronize()
        found = self._logits[: cache.batch * self._vocabulary].reshape(cache.batch, self._vocabulary)
        return found.astype(np.float32)

    def close(self) -> None:
        """Give the buffers and the captured graphs back."""
        self._steps.clear()
        self._buffers.release()

    def _step(self, cache: CacheLayout) -> _Step:
        key = (cache.batch, *cache.slots, *cache.memory.caches)
        step = self._steps.pop(key, None) or self._prepare(cache)
        self._steps[key] = step
        if len(self._steps) > STEPS_KEPT:
            self._steps.popitem(last=False)
        return step

    def _prepare(self, cache: CacheLayout) -> _Step:
        # A captured graph stays valid only while its context is left alone, so each has a context of its own.
        context = self._engine.context(self._activations, repeated=True)
        for name, shape in self._shapes(cache).items():
            context.set_shape(name, shape)
        grown = cache.store.output_addresses(cache.batch, [slots + 1 for slots in cache.slots])
        addresses = {
            **{name: self._buffers.address + offset for name, offset in self._offsets.items()},
            "logits": self._buffers.address + self._logits_offset,
            **cache.store.input_addresses(cache),
            **{f"new_{name}": address for name, address in grown.items()},
        }
        for name, address in addresses.items():
            context.bind(name, address)
        context.infer_shapes()
        return _Step(self._device, context, self._work(context, cache.batch))

    def _shapes(self, cache: CacheLayout) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {name: (cache.batch, 1) for name in ("token", "position")}
        for group, slots in zip(cache.store.groups, cache.slots, strict=True):
            shapes[group.mask] = (cache.batch, slots + 1)
            for name in group.names:
                _, heads, _, width = self._engine.tensors[name].shape
                shapes[name] = (cache.batch, heads, slots, width)
        return shapes

    def _work(self, context: EngineContext, batch: int) -> Any:
        device, logits = self._device, self._logits[: batch * self._vocabulary]
        address, below = self._buffers.address, self._buffers.address + self._logits_offset

        def work() -> None:
            device.upload(address, self._inputs)
            context.enqueue(device.stream)
            device.download(logits, below)

        return work


class _Step:
    """One context with fixed sizes and addresses: run as it is the first time, captured the second."""

    def __init__(self, device: GpuDevice, context: EngineContext, work: Any) -> None:
        self._device = device
        self._graph: CapturedGraph | None = None  # before the work, whose context it must not outlive
        self._work = work
        self._capturable = not context.captures_itself
        self._runs = 0

    def run(self) -> None:
        # TensorRT may allocate or choose kernels when it meets sizes for the first time, which cannot be captured.
        if self._runs and self._capturable and self._graph is None:
            try:
                self._graph = self._device.capture(self._work)
            except CaptureError:
                self._capturable = False
        self._runs += 1
        if self._graph is None:
            self._work()
        else:
            self._graph.launch()
