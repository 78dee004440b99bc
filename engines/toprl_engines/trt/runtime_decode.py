"""One token at a time: every step with the same sizes runs by the same context, captured as a CUDA graph."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toprl_engines.trt.memory import DeviceCache
from toprl_engines.trt.runtime_device import Block, CapturedGraph, CaptureError, Device, offsets_of
from toprl_engines.trt.runtime_engine import Context, LoadedEngine, Shape

STEPS_KEPT = 16
"""Captured graphs that are kept; each is for one batch, one length per group and one cache memory."""


class Decoder:
    """Runs the decode engine over `DeviceCache`.

    Token and position go up in one copy, the logits come down in one; the copies are part of the captured graph.
    """

    def __init__(self, device: Device, engine: LoadedEngine, max_batch: int, activations: Block) -> None:
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

    def run(self, cache: DeviceCache, token: NDArray[np.int64], position: NDArray[np.int64]) -> NDArray[np.float32]:
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

    def _step(self, cache: DeviceCache) -> _Step:
        key = (cache.batch, *cache.slots, *cache.memory.caches)
        step = self._steps.pop(key, None) or self._prepare(cache)
        self._steps[key] = step
        if len(self._steps) > STEPS_KEPT:
            self._steps.popitem(last=False)
        return step

    def _prepare(self, cache: DeviceCache) -> _Step:
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

    def _shapes(self, cache: DeviceCache) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {name: (cache.batch, 1) for name in ("token", "position")}
        for group, slots in zip(cache.store.groups, cache.slots, strict=True):
            shapes[group.mask] = (cache.batch, slots + 1)
            for name in group.names:
                _, heads, _, width = self._engine.tensors[name].shape
                shapes[name] = (cache.batch, heads, slots, width)
        return shapes

    def _work(self, context: Context, batch: int) -> Any:
        device, logits = self._device, self._logits[: batch * self._vocabulary]
        address, below = self._buffers.address, self._buffers.address + self._logits_offset

        def work() -> None:
            device.upload(address, self._inputs)
            context.enqueue(device.stream)
            device.download(logits, below)

        return work


class _Step:
    """One context with fixed sizes and addresses: run as it is the first time, captured the second."""

    def __init__(self, device: Device, context: Context, work: Any) -> None:
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
