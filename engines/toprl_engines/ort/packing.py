"""Weights as the kernels of ONNX Runtime's CPU provider want them: made at a bundle's first load, then kept in a cache.

Packing rearranges the matrices for the CPU at hand. Each graph that does it in memory has a copy of its own; what the
cache holds is mapped into memory once, for all graphs of a bundle and all processes. An entry of the cache is a
directory with the bundle's graphs as ONNX Runtime optimised them and one weight file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnxruntime

from toprl_engines.ort.failures import LOADING, first_line
from toprl_engines.ort.packed_weights import JointWeights
from toprl_export.bundle import Bundle
from toprl_export.engine import GRAPHS
from toprl_export.errors import UserError
from toprl_export.fields import fields_to_json, read_file
from toprl_export.files import sha256_of, write_json_atomic
from toprl_export.places import BusyError, check_writable, staged_directory, taken

WEIGHTS = "weights.bin"
ENTRY = "entry.json"
ROOM = 5
"""Times the weights that the disk must have free: packed and not, of all graphs and of the one being added."""
UNUSED_DAYS = 30
_POLL_SECONDS = 0.2
_CPU_FACTS = (
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features",
)  # fmt: skip
"""Lines of /proc/cpuinfo that say which kernels a CPU gets, on x86 and ARM."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheEntry:
    """What an entry of the cache holds.

    Attributes:
        bundle: the directory of the bundle that it was made from.
        cpu: digest of what is known of the CPU.
        graphs: SHA-256 digests of the graphs' files, by role.
        weight_bytes: size of the weight file.
        weights_written_ns: when it was last written to. Computing its digest at each load would take longer than
            packing the weights does.
    """

    format: Literal["toprl-export/packed-weights"] = field(default="toprl-export/packed-weights", kw_only=True)
    version: Literal[1] = field(default=1, kw_only=True)
    bundle: str
    cpu: str
    graphs: dict[str, str]
    weight_bytes: int
    weights_written_ns: int


def cached_graphs(bundle: Bundle, cache: Path | None = None) -> Mapping[str, Path]:
    """The optimised graphs of a bundle over packed weights, by role; they are made where the cache lacks them.

    Several processes may ask at once: one makes them, the others wait for it. Entries that the same directory had
    before it was built anew, and those that nobody used for `UNUSED_DAYS`, are removed when a new one is made.

    Args:
        bundle: verified.
        cache: the directory of entries; one of Hugging Face's cache of assets by default.

    Returns:
        none where they cannot be kept, of which a line of the log says why.
    """
    try:
        directory = default_cache() if cache is None else cache
        return _cached_graphs(bundle, directory / _key(bundle))
    except (UserError, KeyError, *LOADING) as error:
        _log.warning("packed weights are not kept in the cache, each graph packs its own copy: %s", first_line(error))
        return {}


def default_cache() -> Path:
    """Where entries are kept unless another place is given; it is created.

    Raises:
        OSError: it cannot be.
    """
    from huggingface_hub import cached_assets_path

    return cached_assets_path("toprl-export", namespace="packed-weights")


def _cached_graphs(bundle: Bundle, place: Path) -> Mapping[str, Path]:
    told = False
    while True:
        if place.is_dir():
            try:
                return _read(place)
            except (UserError, OSError) as error:
                if not told:
                    _log.warning("packed weights are made again, for what the cache holds is damaged: %s", error)
                told = True
        try:
            check_writable(place, ROOM * bundle.path("weights").stat().st_size)
            with staged_directory(place, overwrite=True, marker=ENTRY) as staging:
                _make(bundle, staging)
        except BusyError:
            time.sleep(_POLL_SECONDS)
        else:
            _remove_old(place)
            return _read(place)


def _read(place: Path) -> Mapping[str, Path]:
    """The graphs of an entry, checked.

    Raises:
        UserError: it is damaged.
        OSError: a file cannot be read.
    """
    entry = read_file(CacheEntry, place / ENTRY)
    found = (place / WEIGHTS).stat()
    second = 10**9
    # Archives and images of containers keep times to the second.
    rounded = found.st_mtime_ns % second == 0 and found.st_mtime_ns // second == entry.weights_written_ns // second
    if found.st_size != entry.weight_bytes or not (rounded or found.st_mtime_ns == entry.weights_written_ns):
        raise UserError(f"{place / WEIGHTS} has been changed since it was written")
    graphs = {role: place / f"{role}.onnx" for role in entry.graphs}
    for role, path in graphs.items():
        if sha256_of(path) != entry.graphs[role]:
            raise UserError(f"{path} has been changed since it was written")
    with suppress(OSError):  # it is only read here
        os.utime(place / ENTRY)
    return graphs


def _make(bundle: Bundle, staging: Path) -> None:
    _log.info("packing the weights of %s for this CPU, once …", bundle.dir)
    roles = [file.role for file in bundle.manifest.files if file.role in GRAPHS]
    digests = {}
    with JointWeights(staging / WEIGHTS) as weights:
        for role in roles:
            own = staging / "own"
            own.mkdir()
            _save_packed(bundle.path(role), own / "graph.onnx")
            graph = staging / f"{role}.onnx"
            graph.write_bytes(weights.take(own / "graph.onnx"))
            digests[role] = sha256_of(graph)
            shutil.rmtree(own)
    written = (staging / WEIGHTS).stat()
    entry = CacheEntry(str(bundle.dir.resolve()), _cpu(), digests, written.st_size, written.st_mtime_ns)
    write_json_atomic(staging / ENTRY, fields_to_json(entry))


def _save_packed(graph: Path, target: Path) -> None:
    """Let ONNX Runtime optimise a graph and save it as ``target``, its weights, packed and not, in a file beside it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "own.bin")
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _remove_old(place: Path) -> None:
    made = read_file(CacheEntry, place / ENTRY)
    long_ago = time.time() - UNUSED_DAYS * 24 * 3600
    for file in place.parent.glob(f"*/{ENTRY}"):
        if file.parent == place:
            continue
        with suppress(UserError, OSError):  # it is in use, of another release, or gone already
            entry = read_file(CacheEntry, file)
            replaced = (entry.bundle, entry.cpu) == (made.bundle, made.cpu)
            if replaced or file.stat().st_mtime < long_ago:
                with taken(file.parent):
                    shutil.rmtree(file.parent)


def _key(bundle: Bundle) -> str:
    """What an entry's content depends on, as the name of its directory."""
    files = {file.role: file.sha256 for file in bundle.manifest.files if file.role in (*GRAPHS, "weights")}
    runtime = (onnxruntime.__version__, onnxruntime.get_build_info())
    return hashlib.sha256(repr((CacheEntry.version, sorted(files.items()), runtime, _cpu())).encode()).hexdigest()[:32]


def _cpu() -> str:
    """Digest of the CPU's kind; where the system does not tell, of the machine's name."""
    facts: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in _CPU_FACTS:
                facts.setdefault(name.strip(), value.strip())
    known = sorted(facts.items()) or [("node", platform.node())]
    return hashlib.sha256(repr((platform.machine(), known)).encode()).hexdigest()
