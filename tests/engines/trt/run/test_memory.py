"""Where keys and values lie: aligned, apart, and untouched by what is copied beside them."""

from __future__ import annotations

import gc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fake_device import FakeDevice
from toprl_engines.trt.run.device import ALIGNMENT, Block, offsets_of
from toprl_engines.trt.run.memory import CacheGroup, CacheStore

ELEMENT = 4


def group(index: int, heads: int, head_dim: int, capacity: int, layers: int = 2) -> CacheGroup:
    names = tuple(f"{kind}_{index}_{layer}" for layer in range(layers) for kind in ("key", "value"))
    return CacheGroup(names, f"mask_{index}", heads, head_dim * ELEMENT, capacity)


@given(
    heads=st.integers(1, 5),
    row=st.sampled_from([2, 64, 96, 128, 160, 256, 512]),
    batch=st.integers(1, 4),
    slots=st.integers(1, 40),
)
def test_tensors_are_aligned_and_do_not_overlap(heads, row, batch, slots):
    one = CacheGroup(("key_0", "value_0", "key_1"), "mask_0", heads, row, 40)
    addresses = list(one.addresses(1 << 20, batch, slots).values())
    size = batch * heads * slots * row
    assert all(address % ALIGNMENT == 0 for address in addresses)
    assert all(after - before >= size for before, after in pairwise(addresses))
    assert addresses[-1] + size <= addresses[0] + one.size(batch, slots)


@given(sizes=st.lists(st.integers(0, 1000), max_size=6))
def test_buffers_of_one_block_are_aligned_and_apart(sizes):
    offsets, total = offsets_of({str(index): size for index, size in enumerate(sizes)})
    starts = list(offsets.values())
    ends = [*starts[1:], total] if starts else []
    assert all(start % ALIGNMENT == 0 for start in starts)
    assert all(start + size <= end for start, size, end in zip(starts, sizes, ends, strict=True))


class Written:
    """A store on a fake device, with what prefill and decode would have left in its outputs."""

    def __init__(self, groups: list[CacheGroup], batch: int) -> None:
        self.device = FakeDevice()
        self.store = CacheStore(self.device, groups, 3)
        self.batch = batch
        self.masks = Block(self.device, 4096, "masks")
        self.random = np.random.default_rng(0)

    def leave(self, lengths: list[int]) -> dict[str, np.ndarray]:
        """Random outputs of these lengths; ``[b, heads, length, head_dim]`` by name."""
        left = {}
        addresses = self.store.output_addresses(self.batch, lengths)
        for one, length in zip(self.store.groups, lengths, strict=True):
            for name in one.names:
                left[name] = self.random.normal(size=(self.batch, one.heads, length, one.row // ELEMENT)).astype("f4")
                self.device.upload(addresses[name], left[name])
        return left

    def caches(self, cache) -> dict[str, np.ndarray]:
        """What decode would read."""
        self.device.synchronize()
        addresses = self.store.input_addresses(cache)
        found = {}
        for one, slots in zip(self.store.groups, cache.slots, strict=True):
            for name in one.names:
                shape = (self.batch, one.heads, slots, one.row // ELEMENT)
                memory = self.device.view(addresses[name], int(np.prod(shape)) * ELEMENT)
                found[name] = memory.copy().view("f4").reshape(shape)
            mask = self.device.view(addresses[one.mask], self.batch * (slots + 1))
            found[one.mask] = mask.copy().view(bool).reshape(self.batch, slots + 1)
        return found


@pytest.mark.parametrize("batch", [1, 3])
def test_caches_hold_the_prompt_then_each_new_token_then_zeros(batch):
    groups = [group(0, 3, 24, 30), group(1, 1, 16, 20, layers=1)]
    written, lengths = Written(groups, batch), [9, 5]
    valid = [np.random.default_rng(1).integers(0, 2, (batch, length)).astype(bool) for length in lengths]
    masks = []
    for index, one in enumerate(valid):
        masks.append(written.masks.address + 1024 * index)
        written.device.upload(masks[-1], one)
    prompt = written.leave(lengths)
    cache = written.store.take(batch, lengths, 2, masks)
    expected = {name: [values] for name, values in prompt.items()}
    for step in range(4):
        if cache.full:
            written.store.lengthen(cache, 2)
        new = written.leave([slots + 1 for slots in cache.slots])
        written.store.append(cache)
        for name, values in new.items():
            expected[name].append(values[:, :, -1:])
        found = written.caches(cache)
        for one, mask, filled, slots in zip(groups, valid, cache.filled, cache.slots, strict=True):
            assert filled == mask.shape[1] + step + 1
            for name in one.names:
                assert np.array_equal(found[name][:, :, :filled], np.concatenate(expected[name], axis=2))
                assert not found[name][:, :, filled:].any()
            ones, zeros = np.ones((batch, step + 1), bool), np.zeros((batch, slots - filled), bool)
            assert np.array_equal(found[one.mask], np.concatenate([mask, ones, zeros, ones[:, :1]], axis=1))
    assert cache.slots == (13, 9)


def test_room_ends_where_the_shortest_capacity_ends():
    store = CacheStore(FakeDevice(), [group(0, 1, 64, 30), group(1, 1, 64, 12)], 1)
    assert [store.room([20, length], 4) for length in (5, 10, 12, 13)] == [4, 2, 0, -1]


def test_memory_of_a_request_that_is_gone_serves_the_next():
    written = Written([group(0, 1, 64, 10)], 1)
    first = written.store.take(1, [3], 2, [written.masks.address])
    other = written.store.take(1, [3], 2, [written.masks.address])
    assert first.memory is not other.memory
    memory = first.memory
    del first
    gc.collect()
    assert written.store.take(1, [3], 2, [written.masks.address]).memory is memory
