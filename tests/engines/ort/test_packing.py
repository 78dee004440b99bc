"""Packed weights in the cache: equal to those packed in memory, made once, and never a reason not to answer."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import onnx
import pytest

from tests.support.onnx_bundle import staged_bundle
from tests.support.tiny_llava import tiny_pixels
from toprl_engines.ort import packing
from toprl_engines.ort.engine import ONNXRuntimeEngine
from toprl_engines.ort.packed_weights import JointWeights
from toprl_engines.ort.packing import ENTRY, WEIGHTS, cached_graphs
from toprl_engines.ort.session import ONNXRuntimeSession
from toprl_export.bundle import Bundle
from toprl_export.engine import SessionOptions
from toprl_export.errors import UserError
from toprl_export.places import taken

KEPT = (13, 9, 4)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, which sessions take too."""
    monkeypatch.setattr(packing, "default_cache", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def told() -> Iterator[list[str]]:
    """Fills with the warnings that were logged."""
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                messages.append(record.getMessage())

    handler, logger = Handler(), logging.getLogger("toprl_engines")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def opened(bundle: Bundle, mode: str, unpruned: bool = False) -> ONNXRuntimeSession:
    return ONNXRuntimeEngine().open(bundle, SessionOptions(1, "cpu", unpruned, {"packing": mode}))


def computed(session: ONNXRuntimeSession) -> list[np.ndarray]:
    """Visual embeddings, and the logits of prefill and of five greedy tokens."""
    visual = session.encode({"pixel_values": tiny_pixels(2).numpy()}).visual
    result = session.prefill(staged_bundle().request(KEPT))
    logits = [result.logits]
    for _ in range(5):
        logits.append(session.decode(result.cache, logits[-1].argmax(-1)))
    return [visual, *logits]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def entry_of(cache: Path) -> Path:
    (entry,) = (path for path in cache.iterdir() if not path.name.startswith("."))
    return entry


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("unpruned", [False, True])
def test_answers_are_bit_for_bit_those_of_weights_packed_in_memory(unpruned, told):
    bundle = staged_bundle().bundle
    expected = computed(opened(bundle, "memory", unpruned))
    for _ in range(2):  # as it makes the entry, and from the entry
        assert same(computed(opened(bundle, "cache", unpruned)), expected)
    assert told == []


def packed_places(graph: Path) -> dict[tuple[int, int], set[tuple[int, int]]]:
    """Offset and length of every tensor in the weight file, and of its packed form."""
    found: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for tensor in onnx.load(str(graph), load_external_data=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            assert entries.pop("location") == WEIGHTS
            place = int(entries.pop("offset")), int(entries.pop("length"))
            parts = [part.split(";") for value in entries.values() for part in value.split("|")[1:]]
            found.setdefault(place, set()).update((int(at), int(size)) for at, size, _ in parts)
    return found


def test_the_packed_weights_are_what_is_computed_with(cache):
    """Negative control: a mere copy of the graphs and weights as they were would pass the other tests."""
    bundle = staged_bundle().bundle
    expected = computed(opened(bundle, "cache"))
    weights = entry_of(cache) / WEIGHTS
    content = bytearray(weights.read_bytes())
    for at, size in set().union(*packed_places(entry_of(cache) / "decode.onnx").values()):
        content[at : at + size] = bytes(size)
    written = weights.stat().st_mtime_ns
    weights.write_bytes(content)
    os.utime(weights, ns=(written, written))  # damage that nobody can see
    found = computed(opened(bundle, "cache"))
    assert np.array_equal(found[0], expected[0])  # nothing of the tower was packed for decode
    assert not np.array_equal(found[-1], expected[-1])


def test_graphs_share_one_file_in_which_equal_bytes_are_once(cache):
    bundle = staged_bundle().bundle
    graphs = cached_graphs(bundle, cache)
    assert set(graphs) == {"vision", "prefill", "decode", "prefill_unpruned"}
    decode, prefill = packed_places(graphs["decode"]), packed_places(graphs["prefill"])
    assert any(decode.values())
    assert all(prefill[place] == parts for place, parts in decode.items() if parts)
    content = (entry_of(cache) / WEIGHTS).read_bytes()
    spans = {
        span for graph in graphs.values() for place, parts in packed_places(graph).items() for span in (place, *parts)
    }
    bytes_of = [content[at : at + size] for at, size in sorted(spans)]
    assert len(set(bytes_of)) == len(bytes_of)
    assert not list(entry_of(cache).glob("own*"))


@pytest.mark.filterwarnings("ignore:Ignoring unknown external data key")
def test_every_tensor_is_the_one_that_onnx_runtime_saved(cache, tmp_path):
    bundle = staged_bundle().bundle
    graphs = cached_graphs(bundle, cache)
    packing._save_packed(bundle.path("prefill"), tmp_path / "saved.onnx")
    saved, joined = onnx.load(str(tmp_path / "saved.onnx")), onnx.load(str(graphs["prefill"]))
    assert len(saved.graph.initializer) == len(joined.graph.initializer) > 20
    for one, other in zip(saved.graph.initializer, joined.graph.initializer, strict=True):
        assert (one.name, one.dims, one.raw_data) == (other.name, other.dims, other.raw_data)
    for graph in (saved.graph, joined.graph):
        del graph.initializer[:]
    assert saved == joined


def test_tensors_of_inner_graphs_are_moved_too(tmp_path):
    content = np.arange(4096, dtype=np.float32).tobytes()
    (tmp_path / "own.bin").write_bytes(bytes(64) + content)

    def outside() -> onnx.TensorProto:
        tensor = onnx.TensorProto(name="w", dims=[4096], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
        for key, value in (("location", "own.bin"), ("offset", "64"), ("length", str(len(content)))):
            tensor.external_data.add(key=key, value=value)
        return tensor

    inner = onnx.helper.make_graph([], "inner", [], [], initializer=[outside()])
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "outer", [], [], initializer=[outside()]))
    onnx.save_model(model, str(tmp_path / "graph.onnx"))
    (tmp_path / "joint").mkdir()
    with JointWeights(tmp_path / "joint" / WEIGHTS) as weights:
        found = onnx.ModelProto.FromString(weights.take(tmp_path / "graph.onnx"))
    assert (tmp_path / "joint" / WEIGHTS).read_bytes() == content
    tensors = [*found.graph.initializer, *(one.g.initializer[0] for one in found.graph.node[0].attribute)]
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in tensors]
    assert places == [{"location": WEIGHTS, "offset": "0", "length": str(len(content))}] * 3


AT_ONCE = """
import sys
from pathlib import Path
from toprl_engines.ort import packing
from toprl_export.bundle import load_bundle
made = []
make = packing._make
packing._make = lambda *arguments: (made.append(1), make(*arguments))
print(len(made) if not packing.cached_graphs(load_bundle(Path(sys.argv[1])), Path(sys.argv[2])) else 2 + len(made))
"""


def test_of_processes_that_ask_at_once_one_makes_it_and_all_have_it(cache):
    bundle = staged_bundle().bundle
    command = [sys.executable, "-c", AT_ONCE, str(bundle.dir), str(cache)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert sorted(int(process.communicate()[0]) for process in started) == [2, 2, 3]
    assert [path.name for path in cache.iterdir()] == [entry_of(cache).name]
    assert same(computed(opened(bundle, "cache")), computed(opened(bundle, "memory")))


def test_who_comes_while_it_is_made_waits(cache, monkeypatch):
    bundle = staged_bundle().bundle
    place = cache / packing._key(bundle)
    waited: list[bool] = []

    def hold() -> None:
        with taken(place):
            while not waited:
                pass

    thread = Thread(target=hold)
    thread.start()
    while not place.with_name(f".{place.name}.lock").exists():
        time.sleep(0.01)
    monkeypatch.setattr(packing.time, "sleep", lambda seconds: (waited.append(True), thread.join()))
    assert cached_graphs(bundle, cache)
    assert waited == [True]


def _cut(entry: Path) -> None:
    os.truncate(entry / WEIGHTS, 4096)


def _change(entry: Path) -> None:
    content = bytearray((entry / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (entry / WEIGHTS).write_bytes(content)


def _change_graph(entry: Path) -> None:
    content = (entry / "decode.onnx").read_bytes()
    (entry / "decode.onnx").write_bytes(content[:-1])


DAMAGE = {
    "weights cut off": _cut,
    "weights changed": _change,
    "weights missing": lambda entry: (entry / WEIGHTS).unlink(),
    "graph changed": _change_graph,
    "graph missing": lambda entry: (entry / "prefill.onnx").unlink(),
    "no JSON": lambda entry: (entry / ENTRY).write_text("{"),
    "another version": lambda entry: (entry / ENTRY).write_text(
        json.dumps(json.loads((entry / ENTRY).read_text()) | {"version": 2})
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_again(cache, told, damage):
    bundle = staged_bundle().bundle
    cached_graphs(bundle, cache)
    DAMAGE[damage](entry_of(cache))
    assert same(computed(opened(bundle, "cache")), computed(opened(bundle, "memory")))
    assert len(told) == 1 and "made again, for what the cache holds is damaged" in told[0] and "\n" not in told[0]
    assert cached_graphs(bundle, cache)
    assert len(told) == 1


def test_an_entry_without_its_marker_is_left_alone_and_done_without(cache, told):
    bundle = staged_bundle().bundle
    cached_graphs(bundle, cache)
    (entry_of(cache) / ENTRY).unlink()
    assert cached_graphs(bundle, cache) == {}
    assert any("holds something else" in line for line in told)
    assert (entry_of(cache) / WEIGHTS).is_file()


def test_times_that_an_archive_rounds_to_seconds_are_no_damage(cache, told):
    bundle = staged_bundle().bundle
    cached_graphs(bundle, cache)
    weights = entry_of(cache) / WEIGHTS
    seconds = weights.stat().st_mtime_ns // 10**9
    os.utime(weights, ns=(seconds * 10**9,) * 2)
    assert cached_graphs(bundle, cache) and told == []
    os.utime(weights, ns=((seconds - 1) * 10**9,) * 2)
    assert cached_graphs(bundle, cache) and len(told) == 1


def _file_in_the_way(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del monkeypatch
    cache.write_text("")


def _no_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del cache
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9 - 10**5, 10**5))


def _full_later(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    del cache
    monkeypatch.setattr(os, "pwrite", write)


def _another_form(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del cache
    monkeypatch.setattr(packing, "_save_packed", lambda graph, target: target.write_bytes(b"\x0b"))


OBSTACLES = {
    "a file in the way": (_file_in_the_way, "in the way"),
    "no room": (_no_room, "its disk has"),
    "the disk full": (_full_later, "no space left"),
    "another form of graphs": (_another_form, "wire type 3"),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_where_nothing_can_be_kept_weights_are_packed_in_memory(cache, monkeypatch, told, obstacle):
    bundle = staged_bundle().bundle
    expected = computed(opened(bundle, "memory"))
    hinder, reason = OBSTACLES[obstacle]
    hinder(cache, monkeypatch)
    assert same(computed(opened(bundle, "cache")), expected)
    assert len(told) == 1 and reason in told[0] and "\n" not in told[0]
    if cache.is_dir():
        assert list(cache.iterdir()) == []


def test_an_entry_that_onnx_runtime_cannot_open_is_done_without(cache, monkeypatch, told):
    bundle = staged_bundle().bundle
    expected = computed(opened(bundle, "memory"))
    cached_graphs(bundle, cache)
    (entry_of(cache) / "decode.onnx").write_bytes(b"damaged")
    entry = json.loads((entry_of(cache) / ENTRY).read_text())
    entry["graphs"]["decode"] = packing.sha256_of(entry_of(cache) / "decode.onnx")
    (entry_of(cache) / ENTRY).write_text(json.dumps(entry))
    assert same(computed(opened(bundle, "cache")), expected)
    assert len(told) == 1 and "decode packs its own copy" in told[0] and "\n" not in told[0]


def test_the_key_is_of_graphs_weights_runtime_and_cpu(monkeypatch, tmp_path):
    bundle = staged_bundle().bundle
    keys = {packing._key(bundle)}
    shutil.copytree(bundle.dir, tmp_path / "copy")
    assert packing._key(Bundle(tmp_path / "copy", bundle.manifest)) in keys
    for role in ("weights", "decode"):
        files = tuple(replace(file, sha256="0" * 64) if file.role == role else file for file in bundle.manifest.files)
        keys.add(packing._key(Bundle(bundle.dir, replace(bundle.manifest, files=files))))
    monkeypatch.setattr(packing.onnxruntime, "__version__", "9.9.9")
    keys.add(packing._key(bundle))
    monkeypatch.setattr(packing, "_cpu", lambda: "another")
    keys.add(packing._key(bundle))
    assert len(keys) == 5


def test_the_cpu_is_told_by_its_features_not_its_frequency(monkeypatch):
    text = "processor : 0\nmodel name : A\ncpu MHz : 1200\nflags : avx avx2\n\nprocessor : 1\nmodel name : A\n"
    told = []
    for content in (text, text.replace("1200", "3400"), text.replace("avx2", "avx512f")):
        monkeypatch.setattr(Path, "read_text", lambda self, content=content: content)
        told.append(packing._cpu())
    assert told[0] == told[1] != told[2]


def test_entries_of_an_earlier_build_and_long_unused_ones_are_removed(cache, monkeypatch):
    bundle = staged_bundle().bundle
    names = []
    for version, place, days in (("1", bundle.dir, 0), ("2", "elsewhere", 0), ("3", "elsewhere", 31)):
        with monkeypatch.context() as patch:
            patch.setattr(packing.onnxruntime, "__version__", version)
            cached_graphs(bundle, cache)
            names.append(packing._key(bundle))
        entry = json.loads((cache / names[-1] / ENTRY).read_text())
        (cache / names[-1] / ENTRY).write_text(json.dumps(entry | {"bundle": str(place)}))
        then = time.time() - days * 24 * 3600
        os.utime(cache / names[-1] / ENTRY, (then, then))
    cached_graphs(bundle, cache)
    assert {path.name for path in cache.iterdir()} == {packing._key(bundle), names[1]}


@pytest.mark.parametrize(("mode", "made"), [("cache", True), ("memory", False), ("off", False)])
def test_only_the_option_cache_makes_an_entry(cache, mode, made):
    session = opened(staged_bundle().bundle, mode)
    assert cache.exists() is made
    logits = computed(session)[1]
    assert np.abs(logits - staged_bundle().expected(staged_bundle().request(KEPT)).logits.numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packed": "cache"}, r"has no option 'packed' for running a bundle, it has packing"),
        ({"packing": "disk"}, r"'packing' of the engine 'onnx' is 'disk', expected cache or memory or off"),
    ],
)
def test_an_option_or_value_that_is_not_known_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        ONNXRuntimeEngine().open(staged_bundle().bundle, SessionOptions(engine_options=options))
