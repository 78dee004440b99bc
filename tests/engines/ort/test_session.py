"""An opened bundle: what it refuses and what stays on the device."""

from __future__ import annotations

import os
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnxruntime import OrtValue

from tests.support.onnx_bundle import grouped_bundle, staged_bundle
from tests.support.tiny_llava import tiny_pixels
from toprl_engines.ort.engine import ONNXRuntimeEngine
from toprl_export.api import LoadedBundle, load
from toprl_export.bundle import Bundle, file_entries, load_bundle, write_manifest
from toprl_export.engine import SessionOptions
from toprl_export.errors import UserError


@pytest.fixture(scope="module")
def session():
    return staged_bundle().open()


@pytest.mark.parametrize("counts", [(13, 9), (26, 9, 4), (13, 14, 4), (13, 9, 0)])
def test_keep_counts_that_do_not_fit(session, counts):
    with pytest.raises(UserError, match=r"keep counts .* expected 3"):
        session.prefill(staged_bundle().request(counts))


@pytest.mark.parametrize("agent", [-1, 2])
def test_an_agent_that_is_not_there(session, agent):
    with pytest.raises(UserError, match=f"agent index {agent} is not one of 0 to 1"):
        session.prefill(staged_bundle().request((13, 9, 4), agent))


def test_other_counts_than_those_built_in():
    built = grouped_bundle()
    with pytest.raises(UserError, match=r"differ from the \[5\] that were built in"):
        built.open().prefill(built.request((6,)))


def test_caches_stay_in_the_runtime_and_grow_by_one(session):
    cache = session.prefill(staged_bundle().request((13, 9, 4))).cache
    before = [one.shape()[2] for one in cache.caches]
    session.decode(cache, np.array([5, 6]))
    assert all(isinstance(one, OrtValue) for one in cache.caches)
    assert [one.shape()[2] for one in cache.caches] == [length + 1 for length in before]
    assert [mask.shape[1] for mask in cache.masks] == [length + 1 for length in before[::2]]


def test_two_requests_do_not_share_a_cache(session):
    request = staged_bundle().request((13, 9, 4))
    first, second = session.prefill(request), session.prefill(request)
    session.decode(first.cache, np.array([5, 6]))
    again = session.decode(second.cache, np.array([9, 9]))
    fresh = session.decode(session.prefill(request).cache, np.array([9, 9]))
    assert np.array_equal(again, fresh)


def test_arrays_of_any_memory_layout_are_taken(session):
    pixels = tiny_pixels(2).numpy()
    turned = np.asfortranarray(pixels)
    assert np.array_equal(
        session.encode({"pixel_values": turned}).visual, session.encode({"pixel_values": pixels}).visual
    )


def test_the_unpruned_graph_is_opened_only_when_asked_for(tmp_path):
    built = staged_bundle()
    for unpruned, unread in ((False, "prefill_unpruned"), (True, "prefill")):
        paths: list[str] = []

        class Recording(type(built.bundle)):
            def path(self, role, paths=paths):
                paths.append(role)
                return super().path(role)

        bundle = Recording(built.bundle.dir, built.bundle.manifest)
        replace(built, bundle=bundle).open(unpruned)
        assert "decode" in paths and unread not in paths


def test_two_threads_give_the_same_answer(session):
    built = staged_bundle()
    from toprl_engines.ort.engine import ONNXRuntimeEngine

    threaded = ONNXRuntimeEngine().open(built.bundle, SessionOptions(threads=2, provider="cpu"))
    request = built.request((13, 9, 4))
    assert np.abs(threaded.prefill(request).logits - session.prefill(request).logits).max() < 1e-4


def test_a_closed_session_is_refused_and_may_be_closed_again():
    built = staged_bundle()
    session = built.open()
    request = built.request((13, 9, 4))
    cache = session.prefill(request).cache
    session.close()
    session.close()
    for use in (
        lambda: session.encode({"pixel_values": tiny_pixels(1).numpy()}),
        lambda: session.prefill(request),
        lambda: session.decode(cache, np.array([5, 6])),
    ):
        with pytest.raises(UserError, match="this session is closed: open the bundle again"):
            use()


def test_a_closed_session_holds_no_graph():
    session = staged_bundle().open()
    graphs = [weakref.ref(graph) for graph in (session._vision, session._prefill, session._decode)]
    session.close()
    assert all(graph() is None for graph in graphs)


QUESTIONS = ("what colour is the 7?", "how many stars are there?", "is there a circle?")


def _asked(loaded: LoadedBundle, number: int) -> tuple[object, ...]:
    """One request of its own picture, question and budget: its answer, tokens and logits' consequences."""
    picture = np.random.default_rng(number).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    budget = (12, 6, 25)[number % 3]
    result = loaded.generate(picture, QUESTIONS[number % len(QUESTIONS)], budget_kept=budget, max_new_tokens=6)
    return tuple(result.answers), tuple(map(tuple, result.token_ids))


def test_threads_that_share_a_loaded_bundle_get_the_answers_of_one():
    with load(staged_bundle().bundle.dir, threads=1) as loaded:
        alone = [_asked(loaded, number) for number in range(24)]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda number: _asked(loaded, number % 24), range(96)))
    assert len(set(alone)) > 8  # or a mix-up would not be seen
    assert together == alone * 4


def _damaged(tmp_path: Path, name: str, content: bytes) -> Bundle:
    """A copy whose file was damaged before the digests were taken."""
    whole = staged_bundle().bundle
    shutil.copytree(whole.dir, tmp_path / "bundle")
    (tmp_path / "bundle" / name).write_bytes(content)
    listed = [(file.role, file.path) for file in whole.manifest.files]
    manifest = replace(whole.manifest, files=file_entries(tmp_path / "bundle", listed))
    write_manifest(tmp_path / "bundle", manifest)
    return load_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("name", ["vision.onnx", "prefill.onnx", "decode.onnx", "weights.bin"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_damage_that_digests_vouch_for_ends_in_one_line(tmp_path: Path, name: str, kept: float):
    content = (staged_bundle().bundle.dir / name).read_bytes()
    bundle = _damaged(tmp_path, name, content[: int(len(content) * kept)])
    with pytest.raises(UserError, match=r"build the bundle again") as caught:
        ONNXRuntimeEngine().open(bundle, SessionOptions())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "by"), [("vision.onnx", "decode.onnx"), ("decode.onnx", "prefill.onnx")])
def test_a_graph_in_the_place_of_another_is_refused(tmp_path: Path, name: str, by: str):
    bundle = _damaged(tmp_path, name, (staged_bundle().bundle.dir / by).read_bytes())
    with pytest.raises(UserError, match=r"lacks the input or output .*: build the bundle again"):
        ONNXRuntimeEngine().open(bundle, SessionOptions())


def test_a_bundle_in_a_hub_cache_answers_as_the_bundle_itself(tmp_path: Path):
    whole = staged_bundle().bundle.dir
    snapshot = tmp_path / "snapshots" / "main"
    (tmp_path / "blobs").mkdir()
    for index, file in enumerate(sorted(path for path in whole.rglob("*") if path.is_file())):
        place = snapshot / file.relative_to(whole)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, tmp_path / "blobs" / str(index))
        place.symlink_to(os.path.relpath(tmp_path / "blobs" / str(index), place.parent))
    with load(whole, threads=1) as own, load(snapshot, threads=1) as linked:
        assert [_asked(linked, number) for number in range(3)] == [_asked(own, number) for number in range(3)]
