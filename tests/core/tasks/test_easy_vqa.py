"""easy-vqa: the published questions, all of them, unchanged."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toprl_export.errors import MissingExtraError
from toprl_export.tasks.easy_vqa import load_easy_vqa
from toprl_export.tasks.registry import TASKS

SPLITS = [("train", "train", 38575, 4000), ("held-out", "test", 9673, 1000)]
TASK = TASKS.get("easy-vqa")


def published(folder: str) -> tuple[list[list], Path]:
    spec = find_spec("easy_vqa")
    assert spec and spec.origin
    data = Path(spec.origin).parent / "data" / folder
    return json.loads((data / "questions.json").read_bytes()), data / "images"


@pytest.mark.parametrize(("split", "folder", "questions", "images"), SPLITS)
def test_questions_are_the_published_ones_in_their_order(split: str, folder: str, questions: int, images: int):
    data, (rows, _) = load_easy_vqa(split), published(folder)
    assert TASK.question_count(split) == len(data.questions) == len(rows) == questions
    assert data.image_count == images
    assert [[question.text, question.answer, index] for question, index in data.questions] == rows


def test_a_full_draw_asks_every_question_once_in_another_order_for_each_seed(monkeypatch: pytest.MonkeyPatch):
    blank = (np.zeros((192, 192, 3), np.uint8), np.zeros((24, 24), np.bool_))
    monkeypatch.setattr("toprl_export.tasks.easy_vqa.EasyVQA.canvas", lambda self, index: blank)
    rows, _ = published("test")

    def drawn(seed: int, limit: int | None) -> list[tuple[str, str, int]]:
        samples = TASK.samples("held-out", seed, limit)
        return [(one.question, one.answer, int(one.image_key.rpartition("/")[2])) for one in samples]

    full = drawn(0, None)
    assert sorted(full) == sorted(map(tuple, rows)) and full != list(map(tuple, rows))
    assert drawn(0, 10**6) == full
    assert drawn(0, 100) == full[:100] != drawn(1, 100)


@pytest.mark.parametrize(("split", "folder", "questions", "images"), SPLITS)
def test_the_scaled_picture_is_on_the_canvas_and_its_shape_is_the_evidence(
    split: str, folder: str, questions: int, images: int
):
    _, pictures = published(folder)
    for sample in TASK.samples(split, 3, 25):
        with Image.open(pictures / f"{sample.image_key.rpartition('/')[2]}.png") as file:
            picture = np.asarray(file.convert("RGB").resize((40, 40), Image.Resampling.BOX)).astype(int)
        places = [
            (row, column)
            for row in range(0, 160, 8)
            for column in range(0, 160, 8)
            if np.abs(sample.image[row : row + 40, column : column + 40] - picture).mean() < 5
        ]
        assert len(places) == 1
        # The backdrop is the commonest colour; what is far from it is the shape.
        colours, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
        distance = np.abs(picture - colours[counts.argmax()]).max(axis=-1)
        shape = np.zeros((192, 192), dtype=bool)
        shape[places[0][0] : places[0][0] + 40, places[0][1] : places[0][1] + 40] = distance > 80
        patches = shape.reshape(24, 8, 24, 8).any(axis=(1, 3))
        assert patches.any() and not (patches & ~sample.evidence).any()
        assert sample.evidence.sum() <= patches.sum() + 4  # smooth edges


def test_in_training_places_are_drawn_anew_and_a_picture_of_its_own_size_is_unchanged():
    data = load_easy_vqa("train")
    _, pictures = published("train")
    with Image.open(pictures / "7.png") as file:
        picture = np.asarray(file.convert("RGB"))
    canvases = [data.canvas(7, np.random.default_rng(seed), 64)[0] for seed in (1, 1, 2)]
    assert np.array_equal(canvases[0], canvases[1]) and not np.array_equal(canvases[0], canvases[2])
    windows = np.lib.stride_tricks.sliding_window_view(canvases[2], (64, 64, 3))[::8, ::8, 0]
    assert (windows == picture).all(axis=(-1, -2, -3)).sum() == 1


def test_groups_go_over_every_image_once_a_round_with_its_own_questions(monkeypatch: pytest.MonkeyPatch):
    blank = (np.zeros((192, 192, 3), np.uint8), np.zeros((24, 24), np.bool_))
    monkeypatch.setattr("toprl_export.tasks.easy_vqa.EasyVQA.canvas", lambda self, index: blank)
    rows, _ = published("train")
    of_image: dict[str, set[tuple[str, str]]] = {}
    for text, answer, index in rows:
        of_image.setdefault(f"easy-vqa/train/{index}", set()).add((text, answer))
    groups = list(TASK.question_groups("train", 0, 8000))
    for group in groups:
        asked = {(question.text, question.answer) for question in group.questions}
        assert len(asked) == len(group.questions) == min(4, len(of_image[group.image_key]))
        assert asked <= of_image[group.image_key]
    first, second = ([group.image_key for group in groups[start : start + 4000]] for start in (0, 4000))
    assert sorted(first) == sorted(second) == sorted(of_image) and first != second


def test_images_come_round_again_after_as_many_as_there_are():
    task, seen = TASKS.get("easy-vqa"), set()
    images = task.image_count("held-out")
    assert images == 1000 and task.image_count("train") == 4000
    for index in range(images):
        seen.add(task.question_group("held-out", 0, index).image_key)
    assert len(seen) == images and task.question_group("held-out", 0, images).image_key in seen


def test_without_the_package_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    load_easy_vqa.cache_clear()
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    for call in (
        lambda: TASK.samples("held-out", 0, 1),
        lambda: TASK.question_groups("train", 0, 1),
        lambda: TASK.sample("held-out", 0, 0),
        lambda: TASK.question_count("held-out"),
    ):
        with pytest.raises(MissingExtraError, match=r"easy_vqa.*toprl-export\[demo\]"):
            call()
