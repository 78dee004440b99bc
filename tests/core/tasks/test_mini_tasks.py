"""The embedded tasks: right answers, reproducible draws, balance, honest evidence, disjoint digits."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.scenes import solve
from toprl_export.errors import MissingExtraError, UserError
from toprl_export.models.mini.architecture import UNKNOWN, build_tokenizer
from toprl_export.tasks.mini_tasks import MiniTask
from toprl_export.tasks.registry import TASKS
from toprl_export.tasks.scenes import Scene, SceneObject, load_glyphs
from toprl_export.tasks.task import Sample

MINI = [name for name in TASKS.names() if name.startswith("mini-")]


def mini(name: str) -> MiniTask:
    task = TASKS.get(name)
    assert isinstance(task, MiniTask)
    return task


def everything(drawn: Scene) -> tuple[SceneObject, ...]:
    return (*drawn.objects, *drawn.clutter)


def patches(objects: Iterable[SceneObject]) -> NDArray[np.bool_]:
    covered = np.zeros((24, 24), dtype=np.bool_)
    for item in objects:
        for row, column in itertools.product((0, 1), repeat=2):
            covered[item.row + row, item.column + column] = True
    return covered


def asked_about(name: str, drawn: Scene) -> list[SceneObject]:
    """The objects that a task's questions can be about."""
    wanted = {"mini-exist": (True, False), "mini-count": (False,)}.get(name, (True,))
    return [item for item in drawn.objects if item.kind.isdecimal() in wanted]


@pytest.mark.parametrize("name", MINI)
def test_answers_follow_from_the_objects(name: str):
    for index in range(400):
        drawn, question = mini(name).scene("held-out", 5, index)
        assert solve(question.text, everything(drawn)) == question.answer


@pytest.mark.parametrize("name", MINI)
def test_a_sample_shows_and_asks_what_its_scene_says(name: str):
    sample = mini(name).sample("held-out", 5, 3)
    drawn, question = mini(name).scene("held-out", 5, 3)
    assert (sample.question, sample.answer) == (question.text, question.answer)
    np.testing.assert_array_equal(sample.evidence, patches(asked_about(name, drawn)))


def test_the_independent_answers_can_disagree():
    """The negative control of the test above: of another scene, answers differ."""
    for name in MINI:
        wrong = 0
        for index in range(50):
            _, question = mini(name).scene("held-out", 5, index)
            other, _ = mini(name).scene("held-out", 6, index)
            try:
                wrong += solve(question.text, everything(other)) != question.answer
            except (AssertionError, ValueError):
                wrong += 1
        assert wrong > 10, name


def same(one: Sample, other: Sample) -> bool:
    return (
        np.array_equal(one.image, other.image)
        and np.array_equal(one.evidence, other.evidence)
        and (one.question, one.answer, one.image_key) == (other.question, other.answer, other.image_key)
    )


@pytest.mark.parametrize("name", TASKS.names())
def test_draws_are_prefix_stable_and_need_no_order(name: str):
    task = TASKS.get(name)
    long = list(task.samples("held-out", 7, 12))
    assert all(map(same, task.samples("held-out", 7, 5), long))
    assert all(same(task.sample("held-out", 7, index), long[index]) for index in (11, 0, 4))
    endless = list(itertools.islice(task.samples("held-out", 7), 12))
    assert all(map(same, endless, long))
    groups = list(task.question_groups("train", 7, 6))
    again = task.question_group("train", 7, 5)
    assert np.array_equal(again.image, groups[5].image)
    assert again.questions == groups[5].questions and again.image_key == groups[5].image_key


@pytest.mark.parametrize("name", TASKS.names())
def test_seeds_splits_and_indices_draw_different_samples(name: str):
    task = TASKS.get(name)
    drawn = [task.sample(split, seed, index) for split in ("train", "held-out") for seed in (0, 1) for index in (0, 1)]
    assert len({sample.image_key for sample in drawn}) == len(drawn)
    assert not any(np.array_equal(one.image, other.image) for one, other in itertools.combinations(drawn, 2))


@pytest.mark.parametrize("name", TASKS.names())
def test_samples_have_the_promised_form_and_only_words_the_model_knows(name: str):
    task, tokenizer = TASKS.get(name), build_tokenizer()
    for sample in task.samples("held-out", 0, 40):
        assert (sample.image.shape, sample.image.dtype) == ((192, 192, 3), np.uint8)
        assert sample.evidence is not None
        assert (sample.evidence.shape, sample.evidence.dtype) == ((24, 24), np.bool_)
        assert 0 < sample.evidence.mean() < 0.12
        assert UNKNOWN not in tokenizer.encode(f"{sample.question} {sample.answer}").tokens
        assert task.score(sample.answer, sample.answer) == 1.0


@pytest.mark.parametrize("name", MINI)
def test_the_picture_shows_exactly_the_objects_and_the_clutter(name: str, monkeypatch: pytest.MonkeyPatch):
    samples = list(mini(name).samples("held-out", 2, 20))
    scenes = [mini(name).scene("held-out", 2, index)[0] for index in range(20)]
    monkeypatch.setattr("toprl_export.tasks.scenes.paint", lambda *_: None)
    backgrounds = list(mini(name).samples("held-out", 2, 20))
    for sample, background, drawn in zip(samples, backgrounds, scenes, strict=True):
        differs = (sample.image != background.image).any(axis=-1)
        changed = differs.reshape(24, 8, 24, 8).any(axis=(1, 3))
        shown = patches(everything(drawn))
        assert shown.sum() == 4 * len(everything(drawn)), "objects overlap"
        assert not (changed & ~shown).any()
        # Glyphs are 2×2 patches; the widest corner of a thin digit may stay empty, but never half of its patches.
        for item in everything(drawn):
            assert changed[item.row : item.row + 2, item.column : item.column + 2].sum() >= 2
        assert changed.sum() >= 0.9 * shown.sum()


@pytest.mark.parametrize("name", MINI)
def test_clutter_is_of_the_other_kind_and_outnumbers_what_is_asked_about(name: str):
    scenes = [mini(name).scene("held-out", 3, index)[0] for index in range(100)]
    cluttered = [drawn for drawn in scenes if drawn.clutter]
    assert len(cluttered) > 80  # a scene without shapes has none to repeat
    for drawn in cluttered:
        assert {item.kind.isdecimal() for item in drawn.clutter} == {name == "mini-count"}
        assert {item.kind for item in drawn.clutter} <= {item.kind for item in drawn.objects}
        assert 14 <= len(drawn.clutter) <= 18
        assert len(drawn.clutter) > len(asked_about(name, drawn))


@pytest.mark.parametrize(("name", "answers"), [("mini-exist", 2), ("mini-count", 5)])
def test_answers_are_balanced(name: str, answers: int):
    counts = Counter(mini(name).scene("held-out", 0, index)[1].answer for index in range(1000))
    expected = 1000 / answers
    deviation = (expected * (1 - 1 / answers)) ** 0.5
    assert len(counts) == answers
    assert all(abs(count - expected) < 4 * deviation for count in counts.values()), counts


def test_without_balance_zero_prevails_in_counting():
    """The negative control: the scenes and questions as they come are not balanced."""
    as_they_come = MiniTask("mini-count", "reasoning", "", "sklearn")
    counts = Counter(as_they_come.scene("held-out", 0, index)[1].answer for index in range(500))
    assert counts["0"] > 160


@pytest.mark.parametrize("name", MINI)
def test_groups_ask_several_answerable_questions_of_one_image(name: str, monkeypatch: pytest.MonkeyPatch):
    task, shown = mini(name), []
    draw = MiniTask._draw
    monkeypatch.setattr(MiniTask, "_draw", lambda self, rng: shown.append(draw(self, rng)) or shown[-1])
    groups = list(task.question_groups("train", 0, 60))
    sizes = [len(group.questions) for group in groups]
    assert min(sizes) >= 1 and max(sizes) == {
        "mini-read": 1,
        "mini-relation": 2,
        "mini-compare": 2,
        "mini-count": 3,
    }.get(name, 4)
    for group, (drawn, _) in zip(groups, shown, strict=True):
        texts = [question.text for question in group.questions]
        assert len(set(texts)) == len(texts)
        assert [solve(text, everything(drawn)) for text in texts] == [question.answer for question in group.questions]
        np.testing.assert_array_equal(group.evidence, patches(asked_about(name, drawn)))


@pytest.mark.parametrize(("name", "share"), [("mini-exist", 0.6), ("mini-count", 0.45)])
def test_no_answer_prevails_in_groups(name: str, share: float):
    groups = mini(name).question_groups("train", 0, 200)
    counts = Counter(question.answer for group in groups for question in group.questions)
    assert max(counts.values()) < share * counts.total()


def test_held_out_digits_are_other_pictures_than_those_trained_on():
    train, held_out = load_glyphs("train").masks, load_glyphs("held-out").masks
    for digit in "0123456789":
        assert len(held_out[digit]) >= 20 and len(train[digit]) >= 9 * 100
        seen = {mask.tobytes() for mask in train[digit]}
        assert not any(mask.tobytes() in seen for mask in held_out[digit])


def test_every_published_digit_is_in_exactly_one_split():
    from sklearn.datasets import load_digits

    copies = {"train": 9, "held-out": 1}
    sizes = {
        split: sum(len(load_glyphs(split).masks[digit]) for digit in "0123456789") / copies[split] for split in copies
    }
    assert sizes["train"] + sizes["held-out"] == len(load_digits().target) == 1797
    assert sizes["held-out"] == int(1797 * 0.2)


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_samples_use_the_glyphs_of_their_split(split: str, monkeypatch: pytest.MonkeyPatch):
    loaded: list[str] = []
    monkeypatch.setattr(
        "toprl_export.tasks.mini_tasks.load_glyphs", lambda name: loaded.append(name) or load_glyphs(name)
    )
    mini("mini-exist").sample(split, 0, 0)
    mini("mini-exist").question_group(split, 0, 0)
    assert loaded == [split, split]


def test_an_unknown_split_is_refused_before_anything_is_drawn():
    with pytest.raises(UserError, match=r"unknown split 'test'.* known: train, held-out"):
        mini("mini-exist").samples("test", 0, 1)
    with pytest.raises(UserError, match="unknown split"):
        mini("mini-exist").question_groups("heldout", 0, 1)


def test_without_scikit_learn_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for draw in (mini("mini-read").samples, mini("mini-read").question_groups):
        with pytest.raises(MissingExtraError, match=r"sklearn.*toprl-export\[train\]"):
            draw("held-out", 0, 1)
