"""The session over a GPU made of NumPy, whose engines compute by ONNX Runtime on the same graphs."""

from __future__ import annotations

import gc
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from tests.support.fake_device import FakeDevice
from tests.support.fake_tensorrt import IExecutionContext
from tests.support.onnx_bundle import grouped_bundle, saliency_bundle, staged_bundle
from tests.support.tiny_llava import tiny_pixels, tiny_tokens
from tests.support.trt_bundle import PlanLimits, open_plans, plans_of
from toprl_engines.trt.run import session as session_module
from toprl_engines.trt.run.memory import CacheStore
from toprl_export.errors import UserError
from toprl_export.runtime.generation import GenerationRequest, generate

STEPS = 9
TOLERANCE = 1e-5


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def short_room(monkeypatch) -> None:
    """Caches are lengthened every fourth token."""
    monkeypatch.setattr(session_module, "ROOM", 4)


@pytest.fixture
def staged(tmp_path, device):
    return open_plans(plans_of(staged_bundle(), tmp_path / "bundle"), device)


def decoded(session, request, steps: int = STEPS) -> list[np.ndarray]:
    """Logits of a prefill and of the steps after it, always by the same tokens."""
    result = session.prefill(request)
    logits = [result.logits]
    for step in range(steps):
        tokens = np.arange(len(result.logits)) + 5 + step
        logits.append(session.decode(result.cache, tokens))
    return logits


def apart(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """The largest difference; not a number where anything is not."""
    return float(np.max([np.abs(a - b).max() for a, b in zip(first, second, strict=True)]))


CASES = {
    "stage before every layer": (staged_bundle, (13, 9, 4), 1, False),
    "nothing pruned": (staged_bundle, (25, 25, 25), 0, False),
    "engine without stages": (staged_bundle, (13, 9, 4), 0, True),
    "grouped heads, full first layer, fixed count": (grouped_bundle, (5,), 1, False),
    "scorer that reads saliency": (saliency_bundle, (12,), 0, False),
}


@pytest.mark.usefixtures("short_room")
@pytest.mark.parametrize("case", CASES)
def test_prefill_and_every_step_agree_with_onnx_runtime(tmp_path, device, case):
    bundle_of, counts, agent, unpruned = CASES[case]
    built = bundle_of()
    session = open_plans(plans_of(built, tmp_path / "bundle"), device, unpruned)
    request = built.request(counts, agent, batch=3)
    expected = built.open(unpruned)
    assert apart(decoded(session, request), decoded(expected, request)) < TOLERANCE
    kept = zip(session.prefill(request).kept, expected.prefill(request).kept, strict=True)
    assert all(np.array_equal(ours, theirs) for ours, theirs in kept)


def test_answers_are_those_of_onnx_runtime(tmp_path, device, staged):
    built = staged_bundle()
    tokenizer = built.adapter.tokenizer
    tokens = tiny_tokens(built.adapter, 2)
    pictures = {"pixel_values": tiny_pixels(2).numpy()}
    request = GenerationRequest(pictures, tokens, (13, 9, 4), 0, max_new_tokens=12, end_tokens=())
    ours, theirs = generate(staged, tokenizer, request), generate(built.open(), tokenizer, request)
    assert ours.token_ids == theirs.token_ids and len(ours.token_ids[0]) == 12
    one_image = replace(request, pictures={"pixel_values": request.pictures["pixel_values"][:1]})
    assert generate(staged, tokenizer, one_image).token_ids == generate(built.open(), tokenizer, one_image).token_ids


@pytest.mark.usefixtures("short_room")
@pytest.mark.parametrize("forgotten", ["append", "lengthen"])
def test_a_cache_that_forgets_a_token_is_noticed(monkeypatch, staged, forgotten):
    built = staged_bundle()
    request = built.request((13, 9, 4))

    def append(store, cache):
        cache.filled = [filled + 1 for filled in cache.filled]

    def lengthen(store, cache, room):
        cache.slots = tuple(filled + room for filled in cache.filled)

    monkeypatch.setattr(CacheStore, forgotten, {"append": append, "lengthen": lengthen}[forgotten])
    with np.errstate(invalid="ignore"):
        found = apart(decoded(staged, request), decoded(built.open(), request))
    assert not found < 1e-2


@pytest.mark.parametrize(
    ("cache_dtype", "other_dtype", "tolerance"),
    [("float16", "float32", 0.05), ("bfloat16", "float32", 0.5), ("float16", "float16", 0.1)],
)
def test_half_precision_at_the_engines_border_is_single_outside(tmp_path, device, cache_dtype, other_dtype, tolerance):
    built = staged_bundle()
    limits = PlanLimits(cache_dtype=cache_dtype, other_dtype=other_dtype)
    session = open_plans(plans_of(built, tmp_path / "bundle", limits), device)
    images = session.encode({"pixel_values": tiny_pixels(2).numpy()})
    assert images.visual.dtype == np.float32
    request = replace(built.request((13, 9, 4)), images=images)
    logits = decoded(session, request)
    assert {one.dtype for one in logits} == {np.dtype(np.float32)}
    assert 0 < apart(logits, decoded(built.open(), request)) < tolerance


def test_device_memory_is_allocated_once(staged, device):
    built = staged_bundle()
    before = device.allocations
    for batch, repeat in product((1, 3), (1, 2)):
        staged.encode({"pixel_values": tiny_pixels(batch).numpy()})
        decoded(staged, built.request((13, 9, 4), batch=batch, repeat=repeat), steps=2)
    assert device.allocations == before


def test_caches_have_the_size_of_the_budgets_until_more_is_kept(tmp_path):
    built = staged_bundle()
    kept, everything = built.request(built.bundle.keep_counts(12)), built.request((25, 25, 25))
    used = {}
    for unpruned in (False, True):
        device = FakeDevice()
        session = open_plans(plans_of(built, tmp_path / str(unpruned), PlanLimits(new_tokens=3)), device, unpruned)
        used[unpruned] = device.memory - device.free_bytes()
        expected = built.open(unpruned)
        assert apart(decoded(session, kept, 3), decoded(expected, kept, 3)) < TOLERANCE
        before = device.allocations
        for _ in range(2):
            assert apart(decoded(session, everything, 3), decoded(expected, everything, 3)) < TOLERANCE
        assert (device.allocations > before) is not unpruned
    assert used[False] < used[True]


def test_two_requests_do_not_share_a_cache_and_their_memory_is_used_again(staged, device):
    built = staged_bundle()
    request = built.request((13, 9, 4))
    first, second = staged.prefill(request), staged.prefill(request)
    staged.decode(first.cache, np.array([5, 6]))
    again = staged.decode(second.cache, np.array([9, 9]))
    allocated = device.allocations
    del first, second
    gc.collect()
    both = [staged.prefill(request) for _ in range(2)]
    fresh = staged.decode(both[1].cache, np.array([9, 9]))
    assert device.allocations == allocated
    assert np.array_equal(again, fresh)


def test_a_session_gives_its_memory_back(tmp_path, device):
    session = open_plans(plans_of(staged_bundle(), tmp_path / "bundle"), device)
    decoded(session, staged_bundle().request((13, 9, 4)))
    assert device.blocks
    del session
    IExecutionContext.created.clear()
    gc.collect()
    assert not device.blocks


def test_steps_of_one_length_run_as_one_captured_graph_that_later_requests_share(staged, device):
    request = staged_bundle().request((13, 9, 4))
    decoded(staged, request)
    assert (device.captures, device.launches) == (1, STEPS - 1)
    contexts = len(IExecutionContext.created)
    decoded(staged, staged_bundle().request((13, 9, 4), seed=2))
    assert (device.captures, device.launches) == (1, 2 * STEPS - 1)
    assert len(IExecutionContext.created) == contexts
    decoded(staged, staged_bundle().request((12, 8, 4)))
    assert device.captures == 2


@pytest.mark.usefixtures("short_room")
def test_lengthened_caches_are_captured_anew(staged, device):
    decoded(staged, staged_bundle().request((13, 9, 4)))
    assert device.captures in (2, 3)


def test_only_some_captured_graphs_are_kept(monkeypatch, staged, device):
    monkeypatch.setattr("toprl_engines.trt.run.execution.STEPS_KEPT", 1)
    first, second = staged_bundle().request((13, 9, 4)), staged_bundle().request((12, 8, 4))
    expected = staged_bundle().open()
    for request in (first, second, first):
        assert apart(decoded(staged, request), decoded(expected, request)) < TOLERANCE
    assert device.captures == 3


def test_an_engine_that_cannot_be_captured_runs_all_the_same(tmp_path, device):
    built = staged_bundle()
    session = open_plans(plans_of(built, tmp_path / "bundle", PlanLimits(capturable=False)), device)
    request = built.request((13, 9, 4))
    assert apart(decoded(session, request), decoded(built.open(), request)) < TOLERANCE
    assert device.launches == 0


def test_tensorrt_for_rtx_captures_decode_itself(tmp_path, device):
    built = staged_bundle()
    session = open_plans(plans_of(built, tmp_path / "bundle", PlanLimits(binding="tensorrt_rtx")), device)
    request = built.request((13, 9, 4))
    assert apart(decoded(session, request), decoded(built.open(), request)) < TOLERANCE
    assert (device.captures, device.launches) == (0, 0)
    names = {context.captures: set(context.engine.outputs) for context in IExecutionContext.created}
    assert "new_key_0" in names[True] and "new_key_0" not in names[False]


def test_a_step_copies_the_token_up_and_the_logits_down_and_nothing_else(staged, device):
    vocabulary = staged_bundle().bundle.manifest.model.shape.vocabulary
    cache = staged.prefill(staged_bundle().request((13, 9, 4))).cache
    for step in range(4):
        up, down = device.copied_up, device.copied_down
        staged.decode(cache, np.array([5, 6]))
        if step < 2:  # a captured graph's copies are counted when it is captured
            assert device.copied_up - up <= 2 * 256
            assert device.copied_down - down == 2 * vocabulary * 4


def test_images_encoded_last_are_not_copied_up_again(staged, device):
    built = staged_bundle()
    request = built.request((13, 9, 4))
    images = staged.encode({"pixel_values": tiny_pixels(2).numpy()})
    visual = images.visual.nbytes

    def uploaded(images) -> int:
        before = device.copied_up
        logits = staged.prefill(replace(request, images=images)).logits
        assert np.abs(logits - built.open().prefill(replace(request, images=images)).logits).max() < TOLERANCE
        return device.copied_up - before

    assert uploaded(images) < visual
    assert uploaded(request.images) > visual
    assert uploaded(images) > visual
    with pytest.raises(ValueError, match="read-only"):
        images.visual[:] = 0


def test_closing_gives_all_memory_back_whoever_holds_a_cache(staged, device):
    """The caches of both stores are in use: those for the budgets, and those for more tokens than any budget keeps."""
    built = staged_bundle()
    requests = [built.request(counts) for counts in ((13, 9, 4), (25, 25, 25))]
    caches = [staged.prefill(request).cache for request in requests for _ in range(2)]
    for _ in range(3):
        staged.decode(caches[0], np.array([5, 6]))
    staged.close()
    staged.close()
    assert not device.blocks
    for use in (
        lambda: staged.encode({"pixel_values": tiny_pixels(1).numpy()}),
        lambda: staged.prefill(requests[0]),
        lambda: staged.decode(caches[0], np.array([5, 6])),
    ):
        with pytest.raises(UserError, match="this session is closed: open the bundle again"):
            use()
    caches.clear()
    assert not device.blocks
