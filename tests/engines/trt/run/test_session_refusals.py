"""What the session refuses, and what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.support.fake_device import FakeDevice
from tests.support.fake_tensorrt import IExecutionContext, ILogger, fake_binding
from tests.support.onnx_bundle import staged_bundle
from tests.support.tiny_llava import tiny_pixels
from tests.support.trt_bundle import PlanLimits, open_plans, plans_of
from toprl_engines.trt.run.engines import EngineError
from toprl_engines.trt.run.session import TensorRTSession
from toprl_export.engine import SessionOptions
from toprl_export.errors import UserError
from toprl_export.runtime.session import largest_batch

COUNTS = (13, 9, 4)
TEXT, NEW_TOKENS = 16, 3


@pytest.fixture
def session(tmp_path):
    limits = PlanLimits(batch=2, text=TEXT, new_tokens=NEW_TOKENS)
    return open_plans(plans_of(staged_bundle(), tmp_path / "bundle", limits), FakeDevice())


def test_more_images_than_the_engine_was_built_for(session):
    with pytest.raises(UserError, match=r"at most 2 images at once, 3 were given: .* --max-batch 3"):
        session.encode({"pixel_values": tiny_pixels(3).numpy()})


def test_the_largest_batch_is_known_to_whoever_asks(session):
    assert [largest_batch(session, wanted) for wanted in (1, 2, 3)] == [1, 2, 2]
    assert largest_batch(staged_bundle().open(), 3) == 3


def test_more_prompts_than_the_engine_was_built_for(session):
    with pytest.raises(UserError, match=r"at most 2 prompts at once, 3 were given: .* --max-batch 3"):
        session.prefill(staged_bundle().request(COUNTS, batch=3))


def test_a_longer_prompt_than_the_engine_was_built_for(session):
    request = staged_bundle().request(COUNTS, repeat=4)
    text = request.tokens.text_index.shape[1]
    with pytest.raises(
        UserError, match=rf"at most {TEXT} text tokens in a prompt, {text} were given: .* --max-text {text}"
    ):
        session.prefill(request)


def test_keep_counts_that_the_engine_was_not_built_for(session):
    with pytest.raises(UserError, match=r"keep counts \[13, 9, 1\] are outside \[2, 2, 2\] to \[25, 25, 25\]"):
        session.prefill(staged_bundle().request((13, 9, 1)))


@pytest.mark.parametrize(("counts", "agent"), [((13, 9), 0), ((9, 13, 4), 0), (COUNTS, 2)])
def test_what_does_not_fit_the_bundle(session, counts, agent):
    with pytest.raises(UserError, match=r"keep counts|agent index"):
        session.prefill(staged_bundle().request(counts, agent))


def test_more_new_tokens_than_the_engine_was_built_for(session):
    request = staged_bundle().request((25, 25, 25))
    text = request.tokens.text_index.shape[1]
    cache = session.prefill(request).cache
    room = TEXT + NEW_TOKENS - text
    for _ in range(room):
        session.decode(cache, np.array([5, 6]))
    with pytest.raises(UserError, match=rf"full after {room} new tokens: .* --max-new-tokens"):
        session.decode(cache, np.array([5, 6]))


def test_a_device_without_enough_memory(tmp_path):
    bundle = plans_of(staged_bundle(), tmp_path / "bundle")
    with pytest.raises(UserError, match=r"need [\d.]+ GiB of device memory, but [\d.]+ GiB are free on NVIDIA L4"):
        open_plans(bundle, FakeDevice(memory=200_000))


def test_more_requests_at_once_than_memory_holds(tmp_path):
    device = FakeDevice()
    session = open_plans(plans_of(staged_bundle(), tmp_path / "bundle"), device)
    request = staged_bundle().request(COUNTS)
    first = session.prefill(request)
    device.memory -= device.free_bytes()
    with pytest.raises(UserError, match=r"caches of keys and values need .* but 0\.00 GiB are free"):
        session.prefill(request)
    assert np.isfinite(session.decode(first.cache, np.array([5, 6]))).all()


def test_a_plan_that_tensorrt_does_not_take(tmp_path):
    bundle = plans_of(staged_bundle(), tmp_path / "bundle")
    (bundle.dir / "decode.plan").write_bytes(b"another version's")
    with pytest.raises(UserError, match=r"cannot load .*decode.plan: the plan's magic tag does not match; build"):
        open_plans(bundle, FakeDevice())


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        ("[myelin.cpp] CUDA error: out of\nmemory", UserError, "no device memory left to run decode: stop what else"),
        ("[myelin.cpp] no such\nkernel", EngineError, r"refused to run \(decode\): \[myelin.cpp\] no such kernel"),
    ],
)
def test_a_step_that_fails_says_why(session, monkeypatch, said, kind, message):
    def fails(context, stream):
        context.engine.logger.log(ILogger.ERROR, said)
        return False

    cache = session.prefill(staged_bundle().request(COUNTS)).cache
    monkeypatch.setattr(IExecutionContext, "execute_async_v3", fails)
    with pytest.raises(kind, match=message):
        session.decode(cache, np.array([5, 6]))


def test_shapes_that_cannot_be_worked_out(session, monkeypatch):
    def fails(context):
        raise RuntimeError("shape inference failed")

    monkeypatch.setattr(IExecutionContext, "infer_shapes", fails)
    with pytest.raises(EngineError, match=r"cannot work out shapes \(prefill\): shape inference failed"):
        session.prefill(staged_bundle().request(COUNTS))


def test_a_provider_of_another_engine(tmp_path):
    bundle = plans_of(staged_bundle(), tmp_path / "bundle")
    device = FakeDevice()
    with pytest.raises(UserError, match="runs only on NVIDIA GPUs, not by the provider 'cpu'"):
        TensorRTSession(bundle, SessionOptions(provider="cpu"), binding=fake_binding(device), device=device)
    with pytest.raises(UserError, match="the engine 'trt' has no option 'packing' for running a bundle"):
        options = SessionOptions(engine_options={"packing": "off"})
        TensorRTSession(bundle, options, binding=fake_binding(device), device=device)


def test_images_without_the_saliency_that_the_scorer_reads(tmp_path):
    from tests.support.onnx_bundle import saliency_bundle

    built = saliency_bundle()
    session = open_plans(plans_of(built, tmp_path / "bundle"), FakeDevice())
    request = built.request((12,))
    with pytest.raises(UserError, match="saliency, which is missing"):
        session.prefill(replace(request, images=replace(request.images, saliency=None)))
