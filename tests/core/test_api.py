"""The Python API on a bundle with a fake engine: defaults, batches, streams and every wrong argument."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.fake_engine import MAX_LENGTH, VISUAL_TOKENS, FakeSession, made_up_bundle
from toprl_export.api import LoadedBundle, load
from toprl_export.engine import SessionOptions
from toprl_export.errors import UserError

QUESTION = "what colour is the 7?"


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.fixture
def loaded(tmp_path: Path, fake_engine: None) -> LoadedBundle:
    made_up_bundle(tmp_path / "bundle")
    return load(tmp_path / "bundle", threads=3, provider="here")


def test_what_a_bundle_offers(loaded: LoadedBundle):
    assert loaded.tasks == ("mini-exist", "mini-count")
    assert loaded.budgets == (8, 4)
    assert isinstance(loaded.session, FakeSession)
    assert loaded.session.options == SessionOptions(threads=3, provider="here", unpruned=False)
    told = load(loaded.bundle.dir, engine_options={"tiles": "many"})
    assert told.session.options == SessionOptions(engine_options={"tiles": "many"})


def test_defaults_are_the_first_task_and_the_largest_budget(loaded: LoadedBundle):
    given = loaded.generate(picture(0), QUESTION)
    explicit = loaded.generate(picture(0), QUESTION, task="mini-exist", budget_kept=8)
    assert given.token_ids == explicit.token_ids
    counts = loaded.bundle.manifest.plan.schedule(8).keep_counts
    assert tuple(kept.shape[1] for kept in given.kept) == counts


def test_task_and_budget_reach_the_engine(loaded: LoadedBundle):
    other = loaded.request(picture(0), QUESTION, task="mini-count", budget_kept=4)
    assert (other.agent_index, other.keep_counts) == (1, loaded.bundle.manifest.plan.schedule(4).keep_counts)
    everything = loaded.generate(picture(0), QUESTION, budget_kept=VISUAL_TOKENS)
    assert all(kept.tolist() == [list(range(VISUAL_TOKENS))] for kept in everything.kept)


def test_a_baseline_serves_every_task_alike(tmp_path: Path, fake_engine: None):
    made_up_bundle(tmp_path / "bundle", "fastv-p")
    loaded = load(tmp_path / "bundle")
    assert loaded.tasks == () and loaded.budgets == (8, 4)
    answers = [loaded.generate(picture(0), QUESTION, task=task).token_ids for task in (None, "mini-count", "mini-read")]
    assert answers[0] == answers[1] == answers[2]


def test_a_batch_is_its_rows(loaded: LoadedBundle, tmp_path: Path):
    Image.fromarray(picture(1)).save(tmp_path / "one.png")
    images = [picture(0), tmp_path / "one.png", Image.fromarray(picture(2))]
    prompts = [QUESTION, "how many circles are there in the image?", "red?"]
    batched = loaded.generate(images, prompts)
    alone = [loaded.generate(image, prompt).answers[0] for image, prompt in zip(images, prompts, strict=True)]
    assert list(batched.answers) == alone
    assert len(set(alone)) == 3


def test_one_image_takes_all_prompts(loaded: LoadedBundle):
    batched = loaded.generate(picture(0), [QUESTION, "red?"])
    assert batched.answers[1] == loaded.generate(picture(0), "red?").answers[0]


def test_streaming_adds_up(loaded: LoadedBundle):
    whole = loaded.generate(picture(0), QUESTION, max_new_tokens=9)
    stream = loaded.generate(picture(0), QUESTION, max_new_tokens=9, stream=True)
    assert "".join(piece.text for piece in stream) == whole.answers[0] == stream.result.answers[0]
    assert len(whole.token_ids[0]) <= 9


def test_a_closed_bundle_is_one_clear_error(tmp_path: Path, fake_engine: None):
    made_up_bundle(tmp_path / "bundle")
    with load(tmp_path / "bundle") as bundle:
        session = bundle.session
        assert bundle.generate(picture(0), QUESTION).answers and session.closed == 0
    bundle.close()
    assert session.closed == 1, "closing again must not reach the engine"
    with pytest.raises(UserError, match=f"^the bundle {tmp_path / 'bundle'} was closed: load it again to use it$"):
        bundle.generate(picture(0), QUESTION)


def test_an_error_inside_closes_the_bundle(tmp_path: Path, fake_engine: None):
    made_up_bundle(tmp_path / "bundle")
    with pytest.raises(UserError, match="a prompt is empty"), load(tmp_path / "bundle") as bundle:
        session = bundle.session
        bundle.generate(picture(0), "")
    assert session.closed == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"task": "mini-read"}, "known: mini-exist, mini-count"),
        ({"budget_kept": 5}, "known: 8, 4, and 16 for no pruning"),
        ({"prompts": ""}, "a prompt is empty"),
        ({"prompts": []}, "no prompt was given"),
        ({"prompts": ["red?", "red?"], "images": [picture(0)] * 3}, "3 images and 2 prompts do not pair"),
        ({"images": "gone.png"}, "gone.png does not exist"),
        ({"images": []}, "no image was given"),
        ({"prompts": "red " * MAX_LENGTH}, f"at most {MAX_LENGTH - 16} fit"),
        ({"max_new_tokens": 0}, "expected at least 1"),
        ({"max_new_tokens": MAX_LENGTH}, "leave no room for a prompt"),
    ],
)
def test_wrong_arguments(loaded: LoadedBundle, arguments: dict, expected: str):
    with pytest.raises(UserError) as caught:
        loaded.generate(**{"images": picture(0), "prompts": QUESTION, **arguments})
    assert expected in str(caught.value)


def test_a_damaged_bundle_is_not_loaded(tmp_path: Path, fake_engine: None):
    made_up_bundle(tmp_path / "bundle")
    (tmp_path / "bundle" / "weights.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"weights\.bin has 0 bytes"):
        load(tmp_path / "bundle")


def test_an_engine_that_is_not_installed(tmp_path: Path):
    made_up_bundle(tmp_path / "bundle")
    with pytest.raises(UserError, match="unknown engine 'fake'"):
        load(tmp_path / "bundle")
