"""A bundle opened by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

from toprl_engines.feeds import request_feeds
from toprl_engines.ort.providers import CPU, Target, choose_provider, open_session, provider_settings
from toprl_export.bundle import Bundle
from toprl_export.engine import SessionOptions
from toprl_export.runtime.session import EncodedImages, PrefillRequest, PrefillResult

Feed: TypeAlias = "NDArray[Any] | OrtValue"


@dataclass
class Cache:
    """Keys and values stay where the runtime put them; masks and positions are small and grow here.

    Attributes:
        caches: key and value of each layer in turn, ``[b, kv_heads, s_l, head_dim]``.
        masks: per group of layers, valid tokens ``bool [b, s_g]``.
        position: position id of the next token, ``int64 [b, 1]``.
    """

    caches: list[OrtValue]
    masks: list[NDArray[np.bool_]]
    position: NDArray[np.int64]


class Graph:
    """One ONNX file, loaded.

    Keys and values are left on the provider's device; all other outputs are small and come to the host.

    Unless ``packed``, weights are used in the file that the operating system maps, which all graphs and processes
    share. A packed graph rearranges them into a copy of its own, with which it is faster.

    Raises:
        UserError: ``target`` is required and cannot be started.
    """

    def __init__(self, path: Path, target: Target, threads: int | None, packed: bool) -> None:
        def options() -> onnxruntime.SessionOptions:
            made = onnxruntime.SessionOptions()
            if not packed:
                made.add_session_config_entry("session.disable_prepacking", "1")
            # The graphs of a bundle take turns: without this, one's idle threads spin on the cores the next one needs.
            made.add_session_config_entry("session.force_spinning_stop", "1")
            made.log_severity_level = 3
            if threads is not None:
                made.intra_op_num_threads = threads
            return made

        self.path = path
        self._session, self.provider = open_session(path, options, target)
        self.device = "cpu" if self.provider == CPU else "cuda"
        self.input_names = [value.name for value in self._session.get_inputs()]
        self.output_names = [value.name for value in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Feed]) -> dict[str, OrtValue]:
        """All outputs by name; array inputs are copied to the device, values that are there already are not."""
        binding = self._session.io_binding()
        arrays: list[NDArray[Any]] = []  # bound arrays are not copied on the CPU, so they must outlive the run
        for name, feed in feeds.items():
            if isinstance(feed, OrtValue):
                binding.bind_ortvalue_input(name, feed)
            else:
                arrays.append(np.asarray(feed, order="C"))
                binding.bind_cpu_input(name, arrays[-1])
        for name in self.output_names:
            binding.bind_output(name, self.device if name.removeprefix("new_").startswith(CACHES) else "cpu")
        self._session.run_with_iobinding(binding)
        return dict(zip(self.output_names, binding.get_outputs(), strict=True))


CACHES = ("key_", "value_")
"""How names of keys and values begin; those that decode returns have ``new_`` before it."""

PACK_BELOW = 256 << 20
"""Bytes of weights from which on memory counts more than the 6-8 % of prefill time that packing saves."""


class ONNXRuntimeSession:
    """The three graphs of a bundle over one weight file, which is mapped into memory once.

    Only graphs that multiply many rows at once are packed, and only where weights are small. With ``options.unpruned``
    prefill runs the graph without stages: keep counts and agent are not looked at.

    Raises:
        UserError: ``options.provider`` is not available or could not be started here.
    """

    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        provider = choose_provider(options.provider)
        self._bundle = bundle
        self._pruned = not options.unpruned
        prefill = "prefill" if self._pruned else "prefill_unpruned"
        small = bundle.path("weights").stat().st_size < PACK_BELOW

        def graph(role: str, packed: bool) -> Graph:
            settings = provider_settings(bundle, provider, role)
            target = Target(provider, options.provider is not None, settings)
            return Graph(bundle.path(role), target, options.threads, packed)

        self._vision, self._prefill, self._decode = (
            graph(role, packed) for role, packed in (("vision", small), (prefill, small), ("decode", False))
        )
        names = self._decode.input_names
        self._cache_inputs = [name for name in names if name.startswith(CACHES)]
        self._mask_inputs = [name for name in names if name.startswith("mask_")]

    def encode_image(self, pixels: NDArray[np.float32]) -> EncodedImages:
        """``float32 [b, 3, h, w]`` to visual embeddings, and to each patch's saliency where the scorer needs it."""
        outputs = self._vision.run({"pixel_values": pixels})
        saliency = outputs["saliency"].numpy() if "saliency" in outputs else None
        return EncodedImages(outputs["visual"].numpy(), saliency)

    def prefill(self, request: PrefillRequest) -> PrefillResult:
        """Run the prompt and fill a new cache.

        Raises:
            UserError: keep counts or agent index do not fit the bundle, or the images lack the saliency it reads.
        """
        feeds = request_feeds(self._bundle.manifest, request, self._prefill.input_names, self._pruned)
        outputs = self._prefill.run(feeds)
        caches = [outputs[name] for name in self._cache_inputs]
        masks = [outputs[name].numpy() for name in self._mask_inputs if name in outputs]
        if not self._pruned:
            masks *= len(self._mask_inputs)
        kept = [outputs[name].numpy() for name in self._prefill.output_names if name.startswith("kept_")]
        cache = Cache(caches, masks, request.tokens.next_position[:, None])
        return PrefillResult(outputs["logits"].numpy(), cache, tuple(kept))

    def decode(self, cache: Cache, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token a row, ``int64 [b]``; logits of the next, ``float32 [b, V]``."""
        new = np.ones((len(tokens), 1), dtype=np.bool_)
        cache.masks = [np.concatenate([mask, new], axis=1) for mask in cache.masks]
        outputs = self._decode.run(
            {
                "token": tokens[:, None],
                "position": cache.position,
                **dict(zip(self._cache_inputs, cache.caches, strict=True)),
                **dict(zip(self._mask_inputs, cache.masks, strict=True)),
            }
        )
        cache.caches = [outputs[f"new_{name}"] for name in self._cache_inputs]
        cache.position = cache.position + 1
        logits: NDArray[np.float32] = outputs["logits"].numpy()
        return logits
