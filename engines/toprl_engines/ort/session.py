"""A bundle opened by ONNX Runtime, on the provider that was chosen or, where that is free to fall back, on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

from toprl_engines.feeds import request_feeds
from toprl_engines.ort.failures import LOADING, RUNNING, STARTING, first_line
from toprl_engines.ort.packing import cached_graphs
from toprl_engines.ort.providers import (
    CPU,
    FIXES,
    IN_CACHE,
    OFF,
    PROVIDERS,
    RTX_PACKAGE,
    RUN_OPTIONS,
    choose_provider,
    provider_chain,
    provider_settings,
)
from toprl_export.bundle import Bundle
from toprl_export.engine import SessionOptions
from toprl_export.errors import UserError
from toprl_export.runtime.session import EncodedImages, PrefillRequest, PrefillResult

Feed: TypeAlias = "NDArray[Any] | OrtValue"
CACHES = ("key_", "value_")
"""How names of keys and values begin; those that decode returns have ``new_`` before it."""

REBUILD = "build the bundle again"
"""What to do about damage that digests do not show, as of a file that was damaged before they were taken."""

_log = logging.getLogger(__name__)


class ONNXRuntimeSession:
    """The three graphs of a bundle over one weight file, which is mapped into memory once.

    On the CPU the weights are packed, once for all graphs and processes (see `toprl_engines.ort.packing`). With
    ``options.unpruned`` prefill runs the graph without stages: keep counts and agent are not looked at.

    Raises:
        UserError: ``options.provider`` is not available or could not be started here, or an option is not known.
    """

    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        options.check_engine_options("onnx", RUN_OPTIONS)
        provider = choose_provider(options.provider)
        packing = options.engine_options.get("packing", IN_CACHE)
        self._bundle = bundle
        self._pruned = not options.unpruned
        prefill = "prefill" if self._pruned else "prefill_unpruned"
        packed = cached_graphs(bundle) if packing == IN_CACHE and provider == CPU else {}

        def graph(role: str) -> Graph:
            settings = provider_settings(bundle, provider, role)
            target = ProviderChoice(provider, options.provider is not None, settings)
            if role in packed:
                try:
                    return Graph(bundle.path(role), target, options.threads, optimised=packed[role])
                except UserError:
                    place = packed[role].parent
                    _log.warning(
                        "%s packs its own copy, for that in the cache cannot be loaded: delete %s", role, place
                    )
            return Graph(bundle.path(role), target, options.threads, packing != OFF)

        self._vision, self._prefill, self._decode = map(graph, ("vision", prefill, "decode"))
        names = self._decode.input_names
        self._cache_inputs = [name for name in names if name.startswith(CACHES)]
        self._mask_inputs = [name for name in names if name.startswith("mask_")]
        self._closed = False
        self._vision.check_names(("pixel_values",), ("visual",))
        self._prefill.check_names(("input_ids",), ("logits", *self._cache_inputs))
        new_caches = (f"new_{name}" for name in self._cache_inputs)
        self._decode.check_names(("token", "position"), ("logits", *new_caches))

    def encode(self, pictures: Mapping[str, NDArray[Any]]) -> EncodedImages:
        """What the tower takes to visual embeddings, and to each patch's saliency where the scorer needs it.

        Raises:
            UserError: the session is closed.
        """
        self._check_open()
        outputs = self._vision.run(pictures)
        saliency = outputs["saliency"].numpy() if "saliency" in outputs else None
        return EncodedImages(outputs["visual"].numpy(), saliency)

    def prefill(self, request: PrefillRequest) -> PrefillResult:
        """Run the prompt and fill a new cache.

        Raises:
            UserError: keep counts or agent index do not fit the bundle, the images lack the saliency it reads, or the
                session is closed.
        """
        self._check_open()
        feeds = request_feeds(self._bundle.manifest, request, self._prefill.input_names, self._pruned)
        outputs = self._prefill.run(feeds)
        caches = [outputs[name] for name in self._cache_inputs]
        masks = [outputs[name].numpy() for name in self._mask_inputs if name in outputs]
        if not self._pruned:
            masks *= len(self._mask_inputs)
        kept = [outputs[name].numpy() for name in self._prefill.output_names if name.startswith("kept_")]
        cache = OrtCache(caches, masks, request.tokens.next_position[:, None])
        return PrefillResult(outputs["logits"].numpy(), cache, tuple(kept))

    def decode(self, cache: OrtCache, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token to every prompt of the batch, ``int64 [b]``; logits of the next, ``float32 [b, V]``.

        Raises:
            UserError: the session is closed.
        """
        self._check_open()
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

    def close(self) -> None:
        """Release the graphs and their device memory; a second call does nothing."""
        if not self._closed:
            self._closed = True
            del self._vision, self._prefill, self._decode

    def _check_open(self) -> None:
        if self._closed:
            raise UserError("this session is closed: open the bundle again")


@dataclass
class OrtCache:
    """The state of one request between two tokens.

    Keys and values stay where the runtime put them; masks and positions are small and grow here.

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

    Weights are used in the file that the operating system maps, which all graphs and processes share, except that a
    graph that is ``packed`` without ``optimised`` rearranges them into a copy of its own.

    Args:
        path: the bundle's graph.
        target: where it is to run.
        threads: CPU threads, or None for ONNX Runtime's choice.
        packed: whether the CPU's kernels get their weights as they want them.
        optimised: the same graph as ONNX Runtime optimised it, over packed weights; what is run, if it is given.

    Raises:
        UserError: ``target`` is required and cannot be started.
    """

    def __init__(
        self,
        path: Path,
        target: ProviderChoice,
        threads: int | None,
        packed: bool = True,
        optimised: Path | None = None,
    ) -> None:
        def options() -> onnxruntime.SessionOptions:
            made = onnxruntime.SessionOptions()
            if optimised is not None:
                made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is done
            if not packed:
                made.add_session_config_entry("session.disable_prepacking", "1")
            # The graphs of a bundle take turns: without this, one's idle threads spin on the cores the next one needs.
            made.add_session_config_entry("session.force_spinning_stop", "1")
            made.log_severity_level = 3
            if threads is not None:
                made.intra_op_num_threads = threads
            return made

        self.path = path
        self._session, self.provider = open_session(path if optimised is None else optimised, options, target)
        self.device = "cpu" if self.provider == CPU else "cuda"
        self.input_names = [value.name for value in self._session.get_inputs()]
        self.output_names = [value.name for value in self._session.get_outputs()]

    def check_names(self, inputs: Iterable[str], outputs: Iterable[str]) -> None:
        """Refuse a graph that lacks some of these.

        Raises:
            UserError: it does.
        """
        lacking = [name for name in inputs if name not in self.input_names]
        lacking += [name for name in outputs if name not in self.output_names]
        if lacking:
            raise UserError(f"{self.path} lacks the input or output {lacking[0]}: {REBUILD}")

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
        try:
            self._session.run_with_iobinding(binding)
        except RUNNING as error:
            raise UserError(f"{self.path} cannot compute this request ({first_line(error)}): {REBUILD}") from error
        return dict(zip(self.output_names, binding.get_outputs(), strict=True))


@dataclass(frozen=True)
class ProviderChoice:
    """Where a session is to run.

    Attributes:
        provider: a key of ``PROVIDERS``.
        required: refuse where it cannot be started; otherwise the CPU takes its place.
        settings: ONNX Runtime's options for the provider.
    """

    provider: str
    required: bool
    settings: Mapping[str, str] = field(default_factory=dict)


def provider_used(session: onnxruntime.InferenceSession) -> str:
    """Our name of where ``session`` really runs, which is the CPU when no other could be started."""
    first = session.get_providers()[0]
    return next(short for short, full in PROVIDERS.items() if full == first)


def open_session(
    path: Path, options: Callable[[], onnxruntime.SessionOptions], target: ProviderChoice
) -> tuple[onnxruntime.InferenceSession, str]:
    """A session of the graph at ``path``, and our name of where it runs.

    Args:
        path: an ONNX file.
        options: makes session options; each attempt gets its own.
        target: where it is to run.

    Raises:
        UserError: ``target`` is required and cannot be started, or can run no part of the graph.
    """
    if target.provider != CPU:
        try:
            session = _start(path, options(), target)
            reason = _why_not(session, target.provider)
        except STARTING as error:
            reason = first_line(error)
        if reason is None:
            return session, target.provider
        if target.required:
            raise UserError(
                f"provider {target.provider!r} was requested, but ONNX Runtime could not start it ({reason}): "
                f"{FIXES[target.provider]}, or use the CPU"
            )
    try:
        return onnxruntime.InferenceSession(str(path), options(), providers=[PROVIDERS[CPU]]), CPU
    except LOADING as error:
        raise UserError(f"{path} cannot be loaded by ONNX Runtime ({first_line(error)}): {REBUILD}") from error


def _start(path: Path, options: onnxruntime.SessionOptions, target: ProviderChoice) -> onnxruntime.InferenceSession:
    # Without this record a graph that went to the CPU whole would look as if the provider ran it.
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    full = PROVIDERS[target.provider]
    if full in onnxruntime.get_available_providers():
        chain = provider_chain(target.provider, target.settings)
        # Its own fallback prints to standard output, where a command's JSON goes.
        return onnxruntime.InferenceSession(str(path), options, providers=chain, enable_fallback=0)
    _register_plugin()
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == full]
    if not devices:
        raise RuntimeError("it finds no GPU that it supports")
    options.add_provider_for_devices(devices[:1], dict(target.settings))
    return onnxruntime.InferenceSession(str(path), options)


@cache
def _register_plugin() -> None:
    """Once a process, for ONNX Runtime keeps what is registered."""
    plugin: Any = import_module(RTX_PACKAGE)
    onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())


def _why_not(session: onnxruntime.InferenceSession, provider: str) -> str | None:
    """Why a session does not run by ``provider``, or None where it does."""
    used = provider_used(session)
    if used != provider:
        return f"it fell back to {used!r}"
    taken = {subgraph.ep_name for subgraph in session.get_provider_graph_assignment_info()}
    return None if PROVIDERS[provider] in taken else "it can run no part of the graph"
