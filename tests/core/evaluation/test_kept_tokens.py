"""Kept tokens from an agent in PyTorch and from a bundle's engine: the same, and those the command draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.tiny_bundle import ingredients, tiny_bundle
from toprl_export.bundle import load_bundle
from toprl_export.cli.main import main
from toprl_export.errors import UserError
from toprl_export.evaluation.kept_tokens import ImageQuestion, TaskQuestion, kept_by_agent, kept_by_bundle
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.pruning.scorer import make_scorer


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return tiny_bundle(tmp_path, monkeypatch)


def test_agent_and_bundle_keep_the_same_tokens(bundle: Path, tmp_path: Path):
    question = TaskQuestion(None, 3, 0)
    by_agent = kept_by_agent(tmp_path / "agent", question, 6, None)
    by_bundle = kept_by_bundle(bundle, question, None, 6, None)
    assert sum(map(len, by_agent.kept)) == 12  # two layers each, six on average
    for mine, theirs in zip(by_agent.kept, by_bundle.kept, strict=True):
        assert mine.tolist() == theirs.tolist()
    assert set(by_agent.kept[1]) < set(by_agent.kept[0])
    assert by_agent.sites == ("decoder:0", "decoder:2")
    assert by_agent.answer == by_bundle.answer
    assert by_agent.expected == by_bundle.expected


def test_the_image_is_shown_as_the_model_sees_it(bundle: Path):
    image = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    kept = kept_by_bundle(bundle, ImageQuestion(image, "what colour is the 7?"), None, None, None)
    assert (kept.image == image).all()
    assert kept.expected is None
    assert sum(map(len, kept.kept)) > 12  # the larger budget is the default


def test_the_command_draws_either(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["visualize", "--bundle", str(bundle), "--index", "2", "--output", str(tmp_path / "bundle.png")]) == 0
    assert (
        main(["visualize", "--agent", str(tmp_path / "agent"), "--index", "2", "--output", str(tmp_path / "a.png")])
        == 0
    )
    assert np.array_equal(Image.open(tmp_path / "bundle.png"), Image.open(tmp_path / "a.png"))
    assert "decoder:0" in capsys.readouterr().out
    Image.fromarray(np.zeros((50, 70, 3), np.uint8)).save(tmp_path / "in.png")
    question = ["--image", str(tmp_path / "in.png"), "--prompt", "how many circles are there?"]
    assert main(["visualize", "--bundle", str(bundle), *question, "--output", str(tmp_path / "own.png")]) == 0


def test_all_tokens_can_be_kept(bundle: Path, tmp_path: Path):
    question = TaskQuestion(None, 2, 0)
    for kept in (
        kept_by_agent(tmp_path / "agent", question, 25, None),
        kept_by_bundle(bundle, question, None, 25, None),
    ):
        assert [stage.tolist() for stage in kept.kept] == [list(range(25))] * 2
        assert kept.answer == kept.expected.split(" | ")[0]  # the unpruned model's


def test_a_question_leaves_room_for_its_answer(bundle: Path, tmp_path: Path):
    image = np.zeros((40, 40, 3), np.uint8)
    adapter = ingredients()[0]

    def length(words: int) -> int:
        return adapter.frontend.tokens(["is " * words]).input_ids.shape[1]

    words = next(count for count in range(1, 256) if length(count) > 240)  # 256 positions, 16 for the answer
    for ask in (
        lambda question: kept_by_agent(tmp_path / "agent", question, None, None),
        lambda question: kept_by_bundle(bundle, question, None, None, None),
    ):
        ask(ImageQuestion(image, "is " * (words - 1)))
        with pytest.raises(UserError, match="at most 240 fit"):
            ask(ImageQuestion(image, "is " * words))


@pytest.mark.parametrize("baseline", ["fastv-p", "visionzip"])
def test_a_baselines_bundle_keeps_what_its_scorer_keeps_in_pytorch(
    baseline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    directory = tiny_bundle(tmp_path, monkeypatch, baseline)
    adapter, plan = ingredients()[0], load_bundle(directory).manifest.plan
    kept = kept_by_bundle(directory, TaskQuestion(None, 3, 0), None, 6, None)
    question = TaskQuestion(None, 3, 0).resolve("tiny-echo")
    assert kept.question == question.question
    runner, pixels = ReferenceRunner(adapter), adapter.frontend.pixels([question.image])
    tokens = adapter.frontend.tokens([question.question])
    pruning = Pruning.from_plan(plan, 6, make_scorer(baseline))
    expected = runner.prefill(tokens, runner.encode_image(pixels), pruning, saliency=runner.saliency(pixels)).kept
    assert [one.tolist() for one in kept.kept] == [one[0].tolist() for one in expected]
    command = ["visualize", "--bundle", str(directory), "--index", "3", "--output", str(tmp_path / "b.png")]
    assert main(command) == 0


def test_mistakes_are_one_line(bundle: Path, tmp_path: Path):
    with pytest.raises(UserError, match="choose --index from 0 to 7"):
        kept_by_bundle(bundle, TaskQuestion(None, 8, 0), None, None, None)
    with pytest.raises(UserError, match="no budget of 7"):
        kept_by_bundle(bundle, TaskQuestion(None, 0, 0), None, 7, None)
    with pytest.raises(UserError, match="no budget of 7"):
        kept_by_agent(tmp_path / "agent", TaskQuestion(None, 0, 0), 7, None)
    with pytest.raises(UserError, match="unknown task"):
        kept_by_bundle(bundle, TaskQuestion("other", 0, 0), "other", None, None)
