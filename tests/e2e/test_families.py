"""Bundles of families whose pictures differ in their number of visual tokens: built and run by the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import toprl_export
from tests.support.family_checkpoints import FAMILIES
from toprl_export.cli.main import main
from toprl_export.errors import UserError
from toprl_export.models.load import load_model
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.pruning.scorer import make_scorer

QUESTIONS = ["what colour is the 7?", "is there a star in the image?"]
SIZES = ((90, 40), (56, 70))


@pytest.fixture(scope="module", params=["qwen2_5_vl", "llava_next"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a bundle of it, and two pictures of other shapes."""
    place = tmp_path_factory.mktemp(request.param)
    FAMILIES[request.param](place / "model")
    build = ["build", "--model", str(place / "model"), "--baseline", "fastv-p", "--budget-kept", "60%,40%"]
    assert main([*build, "--output-dir", str(place / "bundle")]) == 0
    for seed, (width, height) in enumerate(SIZES):
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{seed}.png")
    return place


@pytest.mark.parametrize("budget", [0.6, 0.4])
def test_answers_are_those_of_the_pruned_reference(place: Path, budget: float):
    images = [str(place / "0.png"), str(place / "1.png")]
    with toprl_export.load(place / "bundle") as bundle:
        found = bundle.generate(images, QUESTIONS, budget_kept=budget)
        assert bundle.budgets == (0.6, 0.4)
        plan = bundle.bundle.manifest.plan
        shares = plan.schedule(round(budget * 10_000)).keep_counts
        with pytest.raises(UserError, match="known: 60%, 40%, and 100% for no pruning"):
            bundle.generate(images, QUESTIONS, budget_kept=0.5)
    adapter = load_model(str(place / "model"))
    pictures = adapter.frontend.pictures([Image.open(image) for image in images])
    tokens = adapter.frontend.tokens(QUESTIONS, pictures=pictures)
    n = np.array([len(each.rows) for each in pictures.each])
    counts = np.ceil(np.array(shares) * n[:, None] / 10_000).astype(np.int64)
    runner = ReferenceRunner(adapter)
    pruning = Pruning(plan.stage_layers, torch.from_numpy(counts), make_scorer("fastv", 0))
    expected = runner.generate(tokens, runner.encode(pictures), 16, pruning)
    assert [list(ids) for ids in found.token_ids] == expected.tokens


def test_no_pruning_is_the_models_own_answer(place: Path):
    adapter = load_model(str(place / "model"))
    with Image.open(place / "0.png") as image:
        inputs = adapter.frontend.own_inputs(image.convert("RGB"), QUESTIONS[0], "pt")
    made = adapter.model.generate(**inputs, do_sample=False, max_new_tokens=16, pad_token_id=0)
    with toprl_export.load(place / "bundle") as bundle:
        found = bundle.generate(str(place / "0.png"), QUESTIONS[0], budget_kept=1.0)
    own = made[0, inputs["input_ids"].shape[1] :].tolist()
    assert list(found.token_ids[0]) == own[: len(found.token_ids[0])]
    assert len(own) in (len(found.token_ids[0]), len(found.token_ids[0]) + 1)  # with its end token


def test_the_command_line(place: Path, capsys: pytest.CaptureFixture[str]):
    run = ["run", str(place / "bundle"), "--image", str(place / "0.png"), "--prompt", QUESTIONS[0], "--json"]
    assert main([*run, "--budget-kept", "40%"]) == 0
    found = json.loads(capsys.readouterr().out)
    (n,), (counts,) = found["visual_tokens"], found["keep_counts"]
    assert n > counts[0] >= counts[1] >= 1
    assert main([*run, "--budget-kept", "64"]) == 2
    assert "give a share of them, such as 33%" in capsys.readouterr().err
    assert main([*run, "--budget-kept", "100%"]) == 0
    assert json.loads(capsys.readouterr().out)["keep_counts"] == [[n, n]]
    assert main(["inspect", str(place / "bundle")]) == 0
    assert "as many visual tokens as the picture gives" in capsys.readouterr().out
    for refused in (["validate", str(place / "bundle")], ["visualize", "--bundle", str(place / "bundle")]):
        output = ["--output", str(place / "kept.png")] if refused[0] == "visualize" else []
        assert main([*refused, *output]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--baseline", "visionzip"], "which is not known of the family"),
        (["--baseline", "fastv-p", "--static-k"], "leave it out"),
        (["--baseline", "fastv-p", "--budget-kept", "64"], "give a share of them"),
        (["--baseline", "fastv-p", "--budget-kept", "100%"], "expected a number of tokens kept or a share"),
    ],
)
def test_what_needs_one_number_of_visual_tokens_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str], flags: list[str], expected: str
):
    default = [] if "--budget-kept" in flags else ["--budget-kept", "40%"]
    build = ["build", "--model", str(place / "model"), *flags, *default, "--output-dir", str(place / "other")]
    assert main(build) == 2
    printed = capsys.readouterr().err
    assert expected in printed and printed.count("\n") == 1
    assert not (place / "other").exists()


def test_it_is_served_without_torch(place: Path):
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import toprl_export\n"
        f"with toprl_export.load({str(place / 'bundle')!r}) as bundle:\n"
        f"    print(bundle.generate({str(place / '0.png')!r}, {QUESTIONS[0]!r}).answers[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with toprl_export.load(place / "bundle") as bundle:
        assert done.stdout.strip() == bundle.generate(str(place / "0.png"), QUESTIONS[0]).answers[0].strip()
