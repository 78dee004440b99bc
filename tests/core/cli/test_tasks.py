"""tasks: the list, and the picture of samples."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toprl_export.cli.main import main
from toprl_export.tasks.contact_sheet import contact_sheet
from toprl_export.tasks.easy_vqa import load_easy_vqa
from toprl_export.tasks.registry import TASKS
from toprl_export.tasks.task import Sample

LEVELS = {
    "mini-exist": "perception",
    "mini-read": "perception",
    "mini-colour": "perception",
    "mini-count": "reasoning",
    "mini-relation": "reasoning",
    "mini-compare": "reasoning",
    "easy-vqa": "perception",
}


def listed(capsys: pytest.CaptureFixture[str], *argv: str) -> list[dict]:
    assert main(["tasks", "--json", *argv]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["version"]) == ("toprl-export/tasks", 1)
    return found["tasks"]


def test_every_task_is_listed_with_level_and_size(capsys: pytest.CaptureFixture[str]):
    tasks = listed(capsys)
    assert {task["name"]: task["level"] for task in tasks} == LEVELS
    assert [task["name"] for task in tasks] == list(LEVELS) == TASKS.names()
    assert {task["held_out_questions"] for task in tasks[:-1]} == {"unlimited"}
    assert tasks[-1]["held_out_questions"] == 9673
    assert [task["name"] for task in tasks if task["metric"] == "accuracy+f1"] == ["mini-exist"]
    assert listed(capsys, "mini-count") == [tasks[3]]


def test_text_has_one_line_a_task(capsys: pytest.CaptureFixture[str]):
    assert main(["tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(LEVELS)
    assert "9,673" in lines[-1] and "unlimited" in lines[0]


def test_a_task_without_its_data_is_listed_as_needing_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    load_easy_vqa.cache_clear()
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    described = listed(capsys, "easy-vqa")[0]
    assert (described["held_out_questions"], described["missing_extra"]) == (None, "demo")
    assert main(["tasks"]) == 0
    assert "needs [demo]" in capsys.readouterr().out


def test_samples_are_drawn_into_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    file = tmp_path / "new" / "sheet.png"
    assert main(["tasks", "mini-colour", "--show", "5", "--output", str(file), "--seed", "3"]) == 0
    assert str(file) in capsys.readouterr().out
    expected = contact_sheet(list(TASKS.get("mini-colour").samples("held-out", 3, 5)))
    assert file.read_bytes() == expected
    assert main(["tasks", "mini-colour", "--output", str(file)]) == 2
    assert "add --overwrite" in capsys.readouterr().err and file.read_bytes() == expected
    assert main(["tasks", "mini-colour", "--output", str(file), "--split", "train", "--overwrite"]) == 0
    assert file.read_bytes() != expected
    assert [path.name for path in file.parent.iterdir()] == ["sheet.png"]


def drawn(*samples: Sample) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(contact_sheet(samples))))


def test_evidence_is_outlined():
    evidence = np.zeros((24, 24), dtype=np.bool_)
    evidence[3:5, 7:9] = True
    blank = np.full((192, 192, 3), 90, dtype=np.uint8)
    outline = (drawn(Sample(blank, "", "", evidence, "")) == (0, 255, 255)).all(axis=-1)
    row, column = np.nonzero(outline)
    # The picture begins 12 pixels in; a patch of the 24×24 grid is 16 pixels of it.
    corners = np.array((row.min(), row.max(), column.min(), column.max())) - 12
    np.testing.assert_allclose(corners, (3 * 16, 5 * 16, 7 * 16, 9 * 16), atol=2)
    assert outline[12 + 3 * 16 : 12 + 5 * 16, corners[2] + 12].all()
    assert not outline[12 + 3 * 16 + 3 : 12 + 5 * 16 - 3, 12 + 7 * 16 + 3 : 12 + 9 * 16 - 3].any()
    assert not (drawn(Sample(blank, "", "", None, "")) == (0, 255, 255)).all(axis=-1).any()


@pytest.mark.parametrize(("question", "answer"), [("what else is it?", "a square"), ("what is it?", "a star")])
def test_question_and_answer_stand_below_their_picture(question: str, answer: str):
    blank = np.zeros((192, 192, 3), dtype=np.uint8)
    first, second = Sample(blank, "what is it?", "a square", None, ""), Sample(blank, question, answer, None, "")
    row, column = np.nonzero((drawn(first, first) != drawn(first, second)).any(axis=-1))
    assert row.min() >= 12 + 384 and column.min() >= 12 + 384 + 12


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["mini-cuont"], "unknown task 'mini-cuont'; did you mean 'mini-count'? known: mini-exist, "),
        (["mini-count", "--show", "3"], "--show needs a file to draw into: add --output FILE.png"),
        (["--output", "a.png"], "--output draws samples of one task: name it"),
        (["mini-count", "--output", "a.jpg"], "a.jpg is not a PNG file's name: end it in .png"),
        (
            ["mini-count", "--output", "a.png", "--show", "65"],
            "--show 65 is more than a picture holds, expected 1 to 64",
        ),
        (["mini-count", "--output", "a.png", "--show", "0"], "0 is too small, expected at least 1"),
        (
            ["mini-count", "--output", "a.png", "--split", "test"],
            "unknown value of --split 'test'; known: train, held-out",
        ),
        (["mini-count", "--output", "/dev/null/a.png"], "/dev/null/a.png cannot be written"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, argv: list[str], expected: str
):
    monkeypatch.chdir(tmp_path)
    assert main(["tasks", *argv]) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("error: ") and expected in captured and captured.count("\n") == 1
    assert not list(tmp_path.iterdir())
