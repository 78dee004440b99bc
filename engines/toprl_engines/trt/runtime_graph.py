"""An engine that is run with other sizes every time: vision and prefill."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toprl_engines.trt.runtime_device import Block, Device, offsets_of
from toprl_engines.trt.runtime_engine import LoadedEngine, Shape, TensorInfo


class VariableGraph:
    """One engine with device buffers for its inputs and outputs, made once at their greatest sizes.

    Args:
        device: where it runs.
        engine: what runs.
        activations: memory to work in.
        elsewhere: tensors whose buffers belong to others, with their addresses; those of outputs may be given later.
        largest_output: the greatest size of an output's dynamic axes: rows, and anything else.
    """

    def __init__(
        self,
        device: Device,
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
