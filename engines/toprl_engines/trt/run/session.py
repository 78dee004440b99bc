"""A bundle opened by TensorRT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toprl_engines.feeds import request_feeds
from toprl_engines.trt.binding import Binding, load_binding
from toprl_engines.trt.compiled import Compiled
from toprl_engines.trt.run.device import Block, CudaDevice, GpuDevice
from toprl_engines.trt.run.engines import LoadedEngine, TensorInfo, open_engines
from toprl_engines.trt.run.execution import DecodeRunner, VariableGraph
from toprl_engines.trt.run.memory import CacheGroup, CacheLayout, CacheStore
from toprl_export.bundle import Bundle
from toprl_export.engine import SessionOptions
from toprl_export.errors import UserError
from toprl_export.pruning.plan import PruningPlan
from toprl_export.runtime.session import EncodedImages, PrefillRequest, PrefillResult, one_for_all


@dataclass(frozen=True)
class Limits:
    """The sizes that a bundle's engines were built for.

    Attributes:
        batch: min and max of prompts at once.
        images: the same of images.
        text: the same of text tokens in a prompt, padding included.
        keep_counts: min and max of every stage's counts; None where they are no input.
    """

    batch: tuple[int, int]
    images: tuple[int, int]
    text: tuple[int, int]
    keep_counts: tuple[tuple[int, ...], tuple[int, ...]] | None

    @classmethod
    def of(cls, vision: LoadedEngine, prefill: LoadedEngine, decode: LoadedEngine) -> Limits:
        """Read from the profiles of the engines."""
        counts = prefill.tensors.get("keep_counts")
        prompts, tokens = _range(prefill.tensors["input_ids"], 0), _range(decode.tensors["token"], 0)
        return cls(
            batch=(max(prompts[0], tokens[0]), min(prompts[1], tokens[1])),
            images=_range(vision.tensors["pixel_values"], 0),
            text=_range(prefill.tensors["text_index"], 1),
            keep_counts=None if counts is None else counts.values,
        )

    def check_images(self, count: int) -> None:
        """Check that the vision engine takes ``count`` images at once.

        Raises:
            UserError: it does not.
        """
        self._check(count, self.images, "images at once", "--max-batch")

    def check_prompt(self, batch: int, text: int, keep_counts: tuple[int, ...] | None) -> None:
        """Check that the prefill engine takes such a request.

        Args:
            batch: prompts at once.
            text: text tokens of each, padding included.
            keep_counts: None where nothing is pruned.

        Raises:
            UserError: it does not.
        """
        self._check(batch, self.batch, "prompts at once", "--max-batch")
        self._check(text, self.text, "text tokens in a prompt", "--max-text")
        if keep_counts is None or self.keep_counts is None:
            return
        low, high = self.keep_counts
        if not all(a <= kept <= b for a, kept, b in zip(low, keep_counts, high, strict=True)):
            raise UserError(
                f"keep counts {list(keep_counts)} are outside {list(low)} to {list(high)}, which the engine was "
                "built for: use one of the bundle's budgets, or build it with this one"
            )

    @staticmethod
    def _check(given: int, allowed: tuple[int, int], what: str, flag: str) -> None:
        minimum, maximum = allowed
        if given > maximum:
            raise UserError(
                f"the engine takes at most {maximum} {what}, {given} were given: give fewer, or build the bundle "
                f"with {flag} {given}"
            )
        if given < minimum:
            raise UserError(f"the engine takes at least {minimum} {what}, {given} were given: give more")


def no_room(new_tokens: int) -> UserError:
    """The error for caches that cannot be lengthened after a prompt and ``new_tokens``."""
    return UserError(
        f"the engine's caches are full after {new_tokens} new tokens: ask for fewer, or build the bundle with a larger "
        "--max-new-tokens"
    )


def _range(tensor: TensorInfo, axis: int) -> tuple[int, int]:
    return tensor.smallest[axis], tensor.largest[axis]


ROOM = 128
"""Text tokens by which caches are lengthened: more would make attention look at more empty slots, fewer would make
more graphs to capture. Lengths are rounded up to it, so that prompts of different lengths share captured graphs."""


@dataclass
class DeviceCache:
    """One request's state between two tokens.

    Attributes:
        layout: where its keys, values and masks lie on the device.
        prompt: tokens of the prompt in the first group.
        position: position id of the next token, ``int64 [b]``.
    """

    layout: CacheLayout
    prompt: int
    position: NDArray[np.int64]


class TensorRTSession:
    """The engines of a bundle on one GPU, and all the device memory that they need, allocated once.

    That memory is for the largest request that the engines take; but caches are for the bundle's budgets, and more is
    allocated only when a request keeps more tokens than any of them.

    Keys and values never leave the device: prefill writes them there, and decode reads them in place (see `memory`).
    Per generated token one small copy goes up and the logits come down. With ``options.unpruned`` prefill runs the
    engine without stages: keep counts and agent are not looked at. ``options.threads`` does not matter here.

    Args:
        bundle: verified.
        options: how to open it.
        binding: TensorRT; by default the one that built the bundle.
        device: the GPU; by default the first that CUDA shows.

    Raises:
        MissingExtraError: TensorRT or `cuda-bindings` is not installed.
        UserError: there is no GPU or too little memory on it, or the bundle was built for another GPU or TensorRT.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: SessionOptions,
        *,
        binding: Binding | None = None,
        device: GpuDevice | None = None,
    ) -> None:
        if options.provider not in (None, "cuda"):
            raise UserError(
                f"the engine 'trt' runs only on NVIDIA GPUs, not by the provider {options.provider!r}: "
                "leave --provider out, and validate with --device cuda"
            )
        options.check_engine_options("trt", {})
        self._bundle = bundle
        self._pruned = not options.unpruned
        compiled = Compiled.from_details(bundle.manifest.engine.details)
        binding = binding or load_binding(compiled.binding)
        self._device: GpuDevice = device or CudaDevice()
        roles = ("vision", "prefill" if self._pruned else "prefill_unpruned", "decode")
        vision, prefill, decode = open_engines(bundle, roles, binding, self._device)
        self._limits = Limits.of(vision, prefill, decode)
        self._input_names = tuple(tensor.name for tensor in prefill.inputs)
        activations = max(engine.activation_bytes for engine in (vision, prefill, decode))
        # One block for all: they take turns on one stream.
        self._activations = Block(self._device, activations, "activations")
        plan, max_batch = bundle.manifest.plan, self._limits.batch[1]
        self._groups = _cache_groups(decode, plan.groups)
        self._planned = _planned_tokens(plan, self._pruned)
        shortened = _shortened(self._groups, self._planned, plan.visual_tokens, self._limits.text[1])
        # The first is for the bundle's budgets; another follows when a request keeps more tokens than any of them.
        self._stores = [CacheStore(self._device, shortened, max_batch)]
        self._decoder = DecodeRunner(self._device, decode, max_batch, self._activations)
        self._vision, self._prefill = self._prompt_graphs(vision, prefill)
        self._encoded = [tensor.name for tensor in vision.outputs]
        # One mask serves all groups where nothing is pruned.
        self._masks = [f"mask_{group if self._pruned else 0}" for group in range(len(self._groups))]
        self._kept = [f"kept_{stage}" for stage in range(len(plan.stages) if self._pruned else 0)]
        self._resident: EncodedImages | None = None
        self._closed = False

    @property
    def max_batch(self) -> int:
        """Maximum number of prompts, or images, in one call."""
        return min(self._limits.batch[1], self._limits.images[1])

    def encode(self, pictures: Mapping[str, NDArray[Any]]) -> EncodedImages:
        """What the tower takes to visual embeddings, and to each patch's saliency where the scorer needs it.

        They also stay on the device, from where a prefill of the same object takes them.

        Raises:
            UserError: there are more images than the engine takes, or the session is closed.
        """
        self._check_open()
        self._limits.check_images(len(pictures["pixel_values"]))
        self._resident = None
        self._vision.prepare(dict(pictures))
        self._vision.run()
        found = {name: self._vision.fetch(name) for name in self._encoded}
        self._device.synchronize()
        arrays = {name: array.astype(np.float32) for name, array in found.items()}
        for array in arrays.values():
            array.flags.writeable = False  # or it could differ from what is on the device
        images = EncodedImages(arrays["visual"], arrays.get("saliency"))
        self._resident = images
        return images

    def prefill(self, request: PrefillRequest) -> PrefillResult:
        """Run the prompt and fill a new cache.

        Raises:
            UserError: the request does not fit the bundle or is larger than its engines were built for, or the caches
                of earlier requests, still referenced, leave no memory for another; or the session is closed.
        """
        self._check_open()
        feeds = request_feeds(self._bundle.manifest, request, self._input_names, self._pruned)
        batch, text = request.tokens.text_index.shape
        self._limits.check_prompt(batch, text, one_for_all(request.keep_counts) if self._pruned else None)
        if request.images is not self._resident:
            self._resident = None
        self._prefill.prepare(feeds, resident=self._shared if self._resident else ())
        lengths = [self._prefill.shape(group.names[0])[2] for group in self._groups]
        store = self._store_for(lengths, text)
        room = store.room(lengths, ROOM - text % ROOM)
        if room < 0:
            raise no_room(0)
        self._prefill.run(store.output_addresses(batch, lengths))
        masks = [self._prefill.addresses[name] for name in self._masks]
        layout = store.take(batch, lengths, room, masks)
        logits = self._prefill.fetch("logits")
        kept = [self._prefill.fetch(name) for name in self._kept]
        self._device.synchronize()
        cache = DeviceCache(layout, lengths[0], request.tokens.next_position)
        return PrefillResult(logits.astype(np.float32), cache, tuple(one.astype(np.int64) for one in kept))

    def decode(self, cache: DeviceCache, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token to every prompt of the batch, ``int64 [b]``; logits of the next, ``float32 [b, V]``.

        Raises:
            UserError: the caches are as long as the engine takes, or the session is closed.
        """
        self._check_open()
        layout = cache.layout
        if layout.full:
            room = layout.store.room(layout.filled, ROOM)
            if not room:
                raise no_room(layout.filled[0] - cache.prompt)
            layout.store.lengthen(layout, room)
        logits = self._decoder.run(layout, tokens, cache.position)
        cache.position = cache.position + 1
        return logits

    def close(self) -> None:
        """Release the engines and all GPU memory, the caches of requests included; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._device.synchronize()
        self._resident = None
        for graph in (self._vision, self._prefill):
            graph.close()
        for store in self._stores:
            store.close()
        self._decoder.close()
        self._activations.release()
        # With them go the engines, whose memory is TensorRT's own.
        del self._decoder, self._vision, self._prefill

    def _check_open(self) -> None:
        if self._closed:
            raise UserError("this session is closed: open the bundle again")

    def _store_for(self, lengths: list[int], text: int) -> CacheStore:
        """Where caches of these lengths per group lie."""
        if all(length - text <= kept for length, kept in zip(lengths, self._planned, strict=True)):
            return self._stores[0]
        if len(self._stores) == 1:
            self._stores.append(CacheStore(self._device, self._groups, self._limits.batch[1]))
        return self._stores[1]

    def _prompt_graphs(self, vision: LoadedEngine, prefill: LoadedEngine) -> tuple[VariableGraph, VariableGraph]:
        """Vision and prefill, the outputs of one being the inputs of the other wherever they agree."""
        agreed = [
            tensor.name
            for tensor in vision.outputs
            if tensor.name in self._input_names
            and tensor.dtype == prefill.tensors[tensor.name].dtype
            and self._limits.images[1] <= prefill.tensors[tensor.name].largest[0]
        ]
        device, activations = self._device, self._activations
        caches: dict[str, int | None] = {name: None for group in self._groups for name in group.names}
        largest = prefill.tensors["input_ids"].largest
        after = VariableGraph(device, prefill, activations, caches, (largest[0], largest[1]))
        shared: dict[str, int | None] = {name: after.addresses[name] for name in agreed}
        before = VariableGraph(device, vision, activations, shared, (self._limits.images[1], 1))
        self._shared = frozenset(agreed)
        return before, after


def _cache_groups(decode: LoadedEngine, layers: Sequence[range]) -> list[CacheGroup]:
    """The decode engine's caches by the mask that they share."""
    groups = []
    for index, span in enumerate(layers):
        mask = decode.tensors[f"mask_{index}"]
        names = tuple(f"{kind}_{layer}" for layer in span for kind in ("key", "value"))
        caches = [decode.tensors[name] for name in names]
        _, heads, _, width = caches[0].shape
        capacity = min(mask.largest[1] - 1, *(cache.largest[2] for cache in caches))
        groups.append(CacheGroup(names, mask.name, heads, width * caches[0].dtype.itemsize, capacity))
    return groups


def _planned_tokens(plan: PruningPlan, pruned: bool) -> list[int]:
    """Maximum number of visual tokens that any budget keeps in each group."""
    if not pruned:
        return [plan.visual_tokens] * len(plan.groups)
    counts = [plan.tokens_per_layer(schedule) for schedule in plan.schedules]
    return [max(per_layer[layers.start] for per_layer in counts) for layers in plan.groups]


def _shortened(groups: Sequence[CacheGroup], planned: Sequence[int], n: int, text: int) -> list[CacheGroup]:
    """``groups`` with room for the planned visual tokens in the place of all ``n``.

    Those of an engine that has no room for n and ``text`` tokens stay as they are.
    """
    return [
        replace(group, capacity=group.capacity - n + kept) if group.capacity > n + text else group
        for group, kept in zip(groups, planned, strict=True)
    ]
