"""Plans that TensorRT really built, run on a real GPU: the answers of ONNX Runtime and of PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.onnx_bundle import TASKS, grouped_bundle, staged_bundle
from tests.support.tiny_llava import tiny_pixels, tiny_tokens
from toprl_engines.trt.options import TensorRTOptions
from toprl_engines.trt.run import session as session_module
from toprl_export.building import PreparedBuild, write_bundle
from toprl_export.bundle import Bundle
from toprl_export.engine import BuildRequest, SessionOptions, get_engine
from toprl_export.errors import UserError
from toprl_export.runtime.generation import GenerationRequest, generate

pytestmark = [pytest.mark.gpu, pytest.mark.trt]
TOLERANCE = {"fp32": 2e-3, "fp16": 0.1, "bf16": 0.8}
STEPS = 9


def built(bundle_of, directory: Path, precision: str) -> Bundle:
    from toprl_engines.trt.binding import load_binding
    from toprl_engines.trt.run.device import CudaDevice

    try:
        binding, device = load_binding(), CudaDevice()
    except UserError as error:
        pytest.skip(str(error))
    if binding.rtx and device.sm in ("9.0", "10.0"):
        pytest.skip(f"TensorRT for RTX does not run on {device.name}")
    source, engine = bundle_of(), get_engine("trt")
    options = TensorRTOptions(attention="native", max_batch=3, max_text=40, max_new_tokens=40)
    request = BuildRequest(
        source.adapter,
        source.agents,
        source.bundle.manifest.plan,
        precision,
        static_k=bundle_of is grouped_bundle,
        options=engine.resolve(options),
    )
    agents = tuple(Path(source.folder.name) / task for task in TASKS)
    return write_bundle(PreparedBuild(engine, request, agents), directory, overwrite=False, command="test")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("bundle_of", "counts"), [(staged_bundle, (13, 9, 4)), (grouped_bundle, (5,))])
def test_logits_agree_with_onnx_runtime_at_every_step(tmp_path, monkeypatch, bundle_of, counts, precision):
    monkeypatch.setattr(session_module, "ROOM", 4)
    bundle = built(bundle_of, tmp_path / "bundle", precision)
    for unpruned in (False, True):
        session = get_engine("trt").open(bundle, SessionOptions(unpruned=unpruned))
        expected = bundle_of().open(unpruned)
        for batch in (1, 3):
            request = bundle_of().request(counts, batch=batch)
            ours, theirs = session.prefill(request), expected.prefill(request)
            pairs = [(ours.logits, theirs.logits)]
            for step in range(STEPS):
                tokens = np.arange(batch) + 5 + step
                pairs.append((session.decode(ours.cache, tokens), expected.decode(theirs.cache, tokens)))
            differences = [np.abs(a - b).max() for a, b in pairs]
            # Rounding can keep other tokens, which moves logits far more than rounding itself.
            same = all(np.array_equal(a, b) for a, b in zip(ours.kept, theirs.kept, strict=True))
            assert np.isfinite(differences).all()
            if same:
                assert np.max(differences) < TOLERANCE[precision]
            assert same or precision != "fp32"


def test_answers_are_those_of_onnx_runtime(tmp_path):
    bundle = built(staged_bundle, tmp_path / "bundle", "fp32")
    source = staged_bundle()
    tokenizer = source.adapter.tokenizer
    tokens = tiny_tokens(source.adapter, 2)
    pictures = {"pixel_values": tiny_pixels(2).numpy()}
    request = GenerationRequest(pictures, tokens, (13, 9, 4), 0, max_new_tokens=12, end_tokens=())
    session = get_engine("trt").open(bundle, SessionOptions())
    ours = generate(session, tokenizer, request)
    assert ours.token_ids == generate(source.open(), tokenizer, request).token_ids
    assert generate(session, tokenizer, request).token_ids == ours.token_ids
