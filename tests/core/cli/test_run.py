"""run: answers, JSON, streams and mistakes, on a bundle with a fake engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.fake_engine import VISUAL_TOKENS, FakeEngine, made_up_bundle
from toprl_export.api import load
from toprl_export.cli.main import main

QUESTION = "what colour is the 7?"


@pytest.fixture
def bundle(tmp_path: Path, fake_engine: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bundle ``bundle`` and images ``0.png`` and ``1.png`` in the current directory."""
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{seed}.png")
    made_up_bundle(tmp_path / "bundle")
    return "bundle"


def answer(image: str, prompt: str, **settings) -> str:
    return load("bundle").generate(image, prompt, **settings).answers[0]


def test_an_answer_is_one_line(bundle: str, capsys: pytest.CaptureFixture[str]):
    assert main(["run", bundle, "--image", "0.png", "--prompt", QUESTION]) == 0
    assert capsys.readouterr().out == answer("0.png", QUESTION) + "\n"


def test_task_budget_and_length_are_passed_on(bundle: str, capsys: pytest.CaptureFixture[str]):
    flags = ["--task", "mini-count", "--budget-kept", "4", "--max-new-tokens", "3", "--threads", "1"]
    assert main(["run", bundle, "--image", "0.png", "--prompt", QUESTION, *flags]) == 0
    expected = answer("0.png", QUESTION, task="mini-count", budget_kept=4, max_new_tokens=3)
    assert capsys.readouterr().out == expected + "\n"
    assert expected != answer("0.png", QUESTION, max_new_tokens=3)


def test_json_of_a_batch(bundle: str, capsys: pytest.CaptureFixture[str]):
    pairs = ["--image", "0.png", "--prompt", QUESTION, "--image", "1.png", "--prompt", "red?"]
    assert main(["run", bundle, *pairs, "--json", "--budget-kept", str(VISUAL_TOKENS)]) == 0
    found = json.loads(capsys.readouterr().out)
    pairs = [("0.png", QUESTION), ("1.png", "red?")]
    assert [(row["image"], row["prompt"]) for row in found["answers"]] == pairs
    assert [row["answer"] for row in found["answers"]] == [answer(*pair, budget_kept=VISUAL_TOKENS) for pair in pairs]
    assert (found["task"], found["keep_counts"], found["visual_tokens"]) == ("mini-exist", [16, 16], 16)
    timings = found["timings"]
    assert set(timings) == {"vision_ms", "prefill_ms", "decode_ms_per_token", "total_ms"}
    assert 0 < timings["vision_ms"] + timings["prefill_ms"] < timings["total_ms"]


def test_a_baseline_needs_no_task(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made_up_bundle(tmp_path / "plain", "fastv-p")
    command = ["run", "plain", "--image", "0.png", "--prompt", QUESTION, "--json"]
    for extra, task in (([], None), (["--task", "mini-read"], "mini-read")):
        assert main([*command, *extra]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["task"], found["answers"][0]["answer"]) == (task, answer("0.png", QUESTION))


def test_one_image_and_several_prompts(bundle: str, capsys: pytest.CaptureFixture[str]):
    assert main(["run", bundle, "--image", "0.png", "--prompt", QUESTION, "--prompt", "red?"]) == 0
    assert capsys.readouterr().out.splitlines() == [answer("0.png", QUESTION), answer("0.png", "red?")]


def test_a_stream_prints_the_same(bundle: str, capsys: pytest.CaptureFixture[str]):
    assert main(["run", bundle, "--image", "0.png", "--prompt", QUESTION, "--stream"]) == 0
    assert capsys.readouterr().out == answer("0.png", QUESTION) + "\n"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--image", "gone.png", "--prompt", QUESTION], "gone.png does not exist"),
        (["--image", "bundle/manifest.json", "--prompt", QUESTION], "is not a picture"),
        (["--image", "0.png", "--prompt", " "], "a prompt is empty"),
        (["--image", "0.png", "--prompt", "red " * 70], "shorten it"),
        (["--image", "0.png", "--image", "1.png", "--prompt", "a", "--prompt", "b", "--prompt", "c"], "do not pair"),
        (["--image", "0.png", "--prompt", "red?", "--task", "nothing"], "known: mini-exist, mini-count"),
        (["--image", "0.png", "--prompt", "red?", "--budget-kept", "7"], "known: 8, 4, and 16 for no pruning"),
        (["--image", "0.png", "--prompt", "red?", "--stream", "--json"], "--stream prints one answer"),
        (["--image", "0.png", "--prompt", "red?", "--prompt", "red?", "--stream"], "--stream prints one answer"),
        (["--prompt", "red?"], "--image"),
    ],
)
def test_mistakes(bundle: str, capsys: pytest.CaptureFixture[str], flags: list[str], expected: str):
    assert main(["run", bundle, *flags]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert expected in printed


def test_a_damaged_bundle(bundle: str, capsys: pytest.CaptureFixture[str]):
    Path("bundle/decode.onnx").write_text("x")
    assert main(["run", bundle, "--image", "0.png", "--prompt", QUESTION]) == 2
    assert "decode.onnx has 1 bytes" in capsys.readouterr().err


def test_options_of_the_engine_reach_its_session(bundle: str, monkeypatch: pytest.MonkeyPatch):
    opened = []
    real = FakeEngine.open
    monkeypatch.setattr(FakeEngine, "open", lambda *given: (opened.append(given[2].engine_options), real(*given))[1])
    asked = ["run", bundle, "--image", "0.png", "--prompt", QUESTION]
    assert main([*asked, "--engine-option", "tiles=many", "--engine-option", "path=a=b"]) == 0
    assert main(asked) == 0
    assert opened == [{"tiles": "many", "path": "a=b"}, {}]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["tiles"], "'tiles' is no option of an engine, expected NAME=VALUE"),
        (["=many"], "'=many' is no option of an engine"),
        (["tiles="], "'tiles=' is no option of an engine"),
        (["tiles=few", "tiles=many"], "'tiles' is given twice"),
    ],
)
def test_malformed_options_of_the_engine(bundle: str, capsys: pytest.CaptureFixture[str], given, message):
    flags = [word for text in given for word in ("--engine-option", text)]
    assert main(["run", bundle, "--image", "0.png", "--prompt", QUESTION, *flags]) == 2
    assert message in capsys.readouterr().err
