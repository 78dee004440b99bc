"""A GPU made of NumPy: memory at addresses, a stream whose work is done when it is waited for, captured graphs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toprl_engines.trt.run.device import ALIGNMENT, CaptureError, Rows, out_of_memory

GARBAGE = 0xFF
"""What fresh memory is full of: not a number in every floating type, -1 in the others."""
FIRST_ADDRESS = 1 << 32


class FakeDevice:
    """See `toprl_engines.trt.run.device.GpuDevice`.

    As on a GPU, nothing queued happens before :meth:`synchronize`, a copy from ordinary host memory takes its source
    at once and one from pinned memory when it runs, and an access outside of an allocation is an error.
    """

    def __init__(self, name: str = "NVIDIA L4", sm: str = "8.9", memory: int = 1 << 30) -> None:
        self.name, self.sm, self.stream = name, sm, 7
        self.memory = memory
        self.blocks: dict[int, NDArray[np.uint8]] = {}
        self.allocations = 0
        self.copied_up = 0
        self.copied_down = 0
        self.launches = 0
        self.captures = 0
        self._next = FIRST_ADDRESS
        self._queue: list[Callable[[], None]] = []
        self._recording: list[Callable[[], None]] | None = None
        self._pinned: list[NDArray[np.uint8]] = []

    def free_bytes(self) -> int:
        return self.memory - sum(block.size for block in self.blocks.values())

    def allocate(self, size: int, what: str) -> int:
        if size > self.free_bytes():
            raise out_of_memory(what, size, self.free_bytes(), self.name)
        assert self._recording is None, "allocated while capturing"
        address = self._next
        self.blocks[address] = np.full(size, GARBAGE, dtype=np.uint8)
        # A gap after each block, so that an access beyond its end is found.
        self._next += (size // ALIGNMENT + 2) * ALIGNMENT
        self.allocations += 1
        return address

    def release(self, address: int) -> None:
        self.synchronize()
        del self.blocks[address]

    def pinned(self, size: int) -> NDArray[np.uint8]:
        self._pinned.append(np.full(size, GARBAGE, dtype=np.uint8))
        return self._pinned[-1]

    def upload(self, address: int, source: NDArray[Any]) -> None:
        assert source.flags.c_contiguous
        taken = source if self._is_pinned(source) else source.copy()
        self.copied_up += source.nbytes

        def copy() -> None:
            self.view(address, taken.nbytes)[:] = taken.reshape(-1).view(np.uint8)

        self._add(copy)

    def download(self, target: NDArray[Any], address: int) -> None:
        assert target.flags.c_contiguous
        self.copied_down += target.nbytes

        def copy() -> None:
            target.reshape(-1).view(np.uint8)[:] = self.view(address, target.nbytes)

        self._add(copy)

    def copy_rows(self, target: Rows, source: Rows, width: int, height: int) -> None:
        assert width <= min(target.pitch, source.pitch)

        def copy() -> None:
            for row in range(height):
                into = self.view(target.address + row * target.pitch, width)
                into[:] = self.view(source.address + row * source.pitch, width)

        self._add(copy)

    def fill_rows(self, target: Rows, value: int, width: int, height: int) -> None:
        assert width <= target.pitch

        def fill() -> None:
            for row in range(height):
                self.view(target.address + row * target.pitch, width)[:] = value

        self._add(fill)

    def synchronize(self) -> None:
        assert self._recording is None, "waited while capturing"
        queue, self._queue = self._queue, []
        for work in queue:
            work()

    def capture(self, work: Callable[[], object]) -> FakeGraph:
        self._recording = []
        try:
            work()
        except Exception as error:
            raise CaptureError(str(error)) from error
        finally:
            recorded, self._recording = self._recording, None
        self.captures += 1
        return FakeGraph(self, recorded)

    def enqueue(self, work: Callable[[], None]) -> None:
        """Queue what a kernel does, or record it."""
        self._add(work)

    @property
    def capturing(self) -> bool:
        """Whether work is being recorded."""
        return self._recording is not None

    def view(self, address: int, size: int) -> NDArray[np.uint8]:
        """The bytes at an address, which must all be in one allocation."""
        starts = sorted(self.blocks)
        place = bisect_right(starts, address) - 1
        assert place >= 0, f"no memory at {address}"
        offset = address - starts[place]
        block = self.blocks[starts[place]]
        assert offset + size <= block.size, f"{size} bytes at {offset} of a block of {block.size}"
        return block[offset : offset + size]

    def _add(self, work: Callable[[], None]) -> None:
        (self._queue if self._recording is None else self._recording).append(work)

    def _is_pinned(self, array: NDArray[Any]) -> bool:
        return any(np.may_share_memory(array, pinned) for pinned in self._pinned)


class FakeGraph:
    """Recorded work."""

    def __init__(self, device: FakeDevice, recorded: list[Callable[[], None]]) -> None:
        self._device = device
        self._recorded = recorded

    def launch(self) -> None:
        self._device.launches += 1
        for work in self._recorded:
            self._device.enqueue(work)
