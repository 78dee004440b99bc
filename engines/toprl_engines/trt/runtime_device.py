"""What the session asks of a GPU: memory, copies between rows, one stream of work, captured graphs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from toprl_export.errors import ToprlError

ALIGNMENT = 256
"""Bytes: where TensorRT wants every tensor to begin."""


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


class Device(Protocol):
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
    """Device memory that is given back when the last reference to it goes.

    Attributes:
        address: where it begins.
        size: its bytes.
    """

    def __init__(self, device: Device, size: int, what: str) -> None:
        self.size = max(size, ALIGNMENT)
        self.address = device.allocate(self.size, what)
        # At the end of the process the driver takes everything back, and may be gone before us.
        weakref.finalize(self, device.release, self.address).atexit = False


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
