"""Keys and values in device memory: where each layer's lie, how they are filled, lengthened and handed on.

The decode engine takes caches of P slots and returns them with the new token behind, P + 1 slots. Attention does not
depend on the order of the slots, since every key carries its position. So the caches of a request stay where they are,
with room for tokens to come that the masks keep out of sight: after a step only the new token's row is copied into the
first free slot. Every step then has the same sizes and addresses and can be captured once as a CUDA graph; only when
the room is used up are the caches laid out anew with more.

All layers of a group have the same lengths. Their caches lie behind one another at one stride, so one copy of rows
serves them all.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from toprl_engines.trt.run.device import ALIGNMENT, Block, GpuDevice, Rows, offsets_of


@dataclass(frozen=True)
class CacheGroup:
    """Keys and values of layers that share one length and one mask, and how long they may become.

    Attributes:
        names: inputs of the decode engine, ``key_0``, ``value_0`` and so on, each ``[b, heads, slots, head_dim]``.
        mask: the input that masks them, ``bool [b, slots + 1]``.
        heads: of keys and values.
        row: bytes of one head's key or value of one token.
        capacity: maximum number of slots.
    """

    names: tuple[str, ...]
    mask: str
    heads: int
    row: int
    capacity: int

    def rows(self, batch: int) -> int:
        """Rows of one tensor's head and batch axes, padded so that the next tensor is aligned."""
        multiple = ALIGNMENT // gcd(ALIGNMENT, self.row)  # rows whose bytes are a multiple of the alignment
        return -(-batch * self.heads // multiple) * multiple

    def all_rows(self, batch: int) -> int:
        """Rows of all tensors."""
        return len(self.names) * self.rows(batch)

    def size(self, batch: int, slots: int) -> int:
        """Bytes of all tensors."""
        return self.all_rows(batch) * slots * self.row

    def addresses(self, start: int, batch: int, slots: int) -> dict[str, int]:
        """Where the tensors begin when the first begins at ``start``."""
        stride = self.rows(batch) * slots * self.row
        return {name: start + index * stride for index, name in enumerate(self.names)}


class CacheMemory:
    """Room for the longest caches and masks of one request."""

    def __init__(self, device: GpuDevice, groups: Sequence[CacheGroup], max_batch: int) -> None:
        sizes = {group.mask: max_batch * (group.capacity + 1) for group in groups}
        sizes |= {f"caches {group.mask}": group.size(max_batch, group.capacity) for group in groups}
        offsets, size = offsets_of(sizes)
        self.block = Block(device, size, "caches of keys and values")
        self.caches = [self.block.address + offsets[f"caches {group.mask}"] for group in groups]
        self.masks = [self.block.address + offsets[group.mask] for group in groups]


@dataclass
class CacheLayout:
    """How the caches of one request lie in memory.

    Attributes:
        store: what lays them out.
        memory: where they are.
        batch: rows of the request.
        slots: of each group's caches, the free ones included.
        filled: slots of each group that hold a token.
    """

    store: CacheStore
    memory: CacheMemory
    batch: int
    slots: tuple[int, ...]
    filled: list[int]

    @property
    def full(self) -> bool:
        """Whether the next token has no slot to be appended to."""
        return any(filled >= slots for filled, slots in zip(self.filled, self.slots, strict=True))


class CacheStore:
    """Lays out the caches of requests, in memory for a batch and for lengths that none of them exceeds.

    Attributes:
        groups: of layers, in the order of their masks.
        max_batch: maximum batch of a request.
    """

    def __init__(self, device: GpuDevice, groups: Sequence[CacheGroup], max_batch: int) -> None:
        self.groups = tuple(groups)
        self.max_batch = max_batch
        self._device = device
        # What prefill and decode return; both are read from here before the next of them runs.
        sizes = {group.mask: group.size(max_batch, group.capacity + 1) for group in groups}
        sizes |= {f"old {group.mask}": max_batch * (group.capacity + 1) for group in groups}
        offsets, size = offsets_of(sizes)
        self._returned = Block(device, size, "returned keys and values")
        self._outputs = [self._returned.address + offsets[group.mask] for group in groups]
        self._spare_masks = [self._returned.address + offsets[f"old {group.mask}"] for group in groups]
        self._memories = [CacheMemory(device, groups, max_batch)]
        self._free = list(self._memories)

    def room(self, lengths: Sequence[int], wanted: int) -> int:
        """How many of the free slots that are ``wanted`` caches of these lengths can have; below 0: not even those."""
        return min(wanted, *(group.capacity - length for group, length in zip(self.groups, lengths, strict=True)))

    def output_addresses(self, batch: int, slots: Sequence[int]) -> dict[str, int]:
        """Where prefill and decode are to write keys and values of these lengths per group, by the names of inputs."""
        return {
            name: address
            for group, start, length in zip(self.groups, self._outputs, slots, strict=True)
            for name, address in group.addresses(start, batch, length).items()
        }

    def input_addresses(self, cache: CacheLayout) -> dict[str, int]:
        """Where decode is to read keys, values and masks of a request."""
        memory = cache.memory
        found = dict(zip((group.mask for group in self.groups), memory.masks, strict=True))
        for group, start, slots in zip(self.groups, memory.caches, cache.slots, strict=True):
            found |= group.addresses(start, cache.batch, slots)
        return found

    def take(self, batch: int, lengths: Sequence[int], room: int, masks: Sequence[int]) -> CacheLayout:
        """Copy what prefill returned into caches with ``room`` free slots.

        Args:
            batch: rows of the request.
            lengths: tokens per group.
            room: no more than leaves all groups within their capacity.
            masks: where prefill put the valid tokens of each group, ``bool [b, length]``.

        Raises:
            UserError: caches of other requests are alive, and there is no memory for more.
        """
        memory = self._free.pop() if self._free else self._another_memory()
        cache = CacheLayout(self, memory, batch, tuple(length + room for length in lengths), list(lengths))
        weakref.finalize(cache, self._free.append, memory).atexit = False
        for index, length in enumerate(lengths):
            self._place(cache, index, self._outputs[index], masks[index], length)
        return cache

    def append(self, cache: CacheLayout) -> None:
        """Copy the new token's keys and values that decode returned into the first free slots, and unmask them."""
        for index, group in enumerate(self.groups):
            slots, free = cache.slots[index], cache.filled[index]
            start = cache.memory.caches[index] + free * group.row
            new = Rows(self._outputs[index] + slots * group.row, (slots + 1) * group.row)
            self._device.copy_rows(Rows(start, slots * group.row), new, group.row, group.all_rows(cache.batch))
            self._device.fill_rows(Rows(cache.memory.masks[index] + free, slots + 1), 1, 1, cache.batch)
            cache.filled[index] += 1

    def lengthen(self, cache: CacheLayout, room: int) -> None:
        """Lay full caches out anew, with ``room`` free slots."""
        device, before = self._device, cache.slots
        cache.slots = tuple(filled + room for filled in cache.filled)
        for index, group in enumerate(self.groups):
            filled, slots = cache.filled[index], before[index]
            # Moved aside first: the new layout overlaps the old one.
            width, height = filled * group.row, group.all_rows(cache.batch)
            aside = Rows(self._outputs[index], width)
            device.copy_rows(aside, Rows(cache.memory.caches[index], slots * group.row), width, height)
            masks = Rows(self._spare_masks[index], filled)
            device.copy_rows(masks, Rows(cache.memory.masks[index], slots + 1), filled, cache.batch)
            self._place(cache, index, aside.address, masks.address, filled)

    def close(self) -> None:
        """Give all memory back, that of requests which are still referenced included."""
        for block in (self._returned, *(memory.block for memory in self._memories)):
            block.release()

    def _another_memory(self) -> CacheMemory:
        self._memories.append(CacheMemory(self._device, self.groups, self.max_batch))
        return self._memories[-1]

    def _place(self, cache: CacheLayout, index: int, source: int, mask: int, length: int) -> None:
        """Copy one group's ``length`` tokens and their mask, packed at ``source`` and ``mask``, into its layout."""
        device, group, slots, batch = self._device, self.groups[index], cache.slots[index], cache.batch
        width, height, pitch = length * group.row, group.all_rows(batch), slots * group.row
        target = cache.memory.caches[index]
        device.copy_rows(Rows(target, pitch), Rows(source, width), width, height)
        if slots > length:
            # A masked slot has weight 0, which only a finite value survives.
            device.fill_rows(Rows(target + width, pitch), 0, pitch - width, height)
        masks = cache.memory.masks[index]
        device.fill_rows(Rows(masks, slots + 1), 0, slots + 1, batch)
        device.copy_rows(Rows(masks, slots + 1), Rows(mask, length), length, batch)
        device.fill_rows(Rows(masks + slots, slots + 1), 1, 1, batch)
