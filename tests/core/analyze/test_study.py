"""A study: who gets which questions right, asked once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from toprl_export.analyze import study as study_module
from toprl_export.analyze.study import OpenAnswerer, Scope, Study
from toprl_export.analyze.ways import OneCut, Unpruned
from toprl_export.errors import MissingExtraError, UserError
from toprl_export.models.llava import LlavaAdapter


def test_the_unpruned_model_is_right_where_the_task_echoes_it(open_study: Callable[..., Study]):
    full = open_study().unpruned()
    assert {name: right.tolist() for name, right in full.items()} == {
        "echo-look": [1.0] * 6,
        "echo-think": [0.0, *[1.0] * 5],
    }


def test_answers_are_shared_by_all_analyses_of_a_directory(
    open_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
):
    study = open_study("echo-think")
    wanted = [(task, way) for task in study.tasks for way in (Unpruned(), OneCut(1, 0))]
    first = study.right(wanted, "first")
    monkeypatch.setattr(study_module, "answer_samples", None)
    again = open_study("echo-think").right(wanted[::-1], "again")
    assert [one.tolist() for one in again[::-1]] == [one.tolist() for one in first]
    with pytest.raises(TypeError):
        study.right([(study.tasks[0], OneCut(2, 0))], "another way is asked")


@pytest.mark.parametrize("changed", [{"limit": 5}, {"seed": 1}])
def test_other_questions_are_other_cells(
    open_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch, changed: dict[str, int]
):
    open_study("echo-look").unpruned()
    monkeypatch.setattr(study_module, "answer_samples", None)
    with pytest.raises(TypeError):
        open_study("echo-look", **changed).unpruned()


def test_other_processes_refuse_a_model_that_changed(open_study: Callable[..., Study], adapter: LlavaAdapter):
    with pytest.raises(UserError, match="the files of model mini changed meanwhile"):
        OpenAnswerer("mini", "cpu", adapter.answering_fingerprint)()


def test_a_task_without_right_answers_is_one_line(open_study: Callable[..., Study]):
    with pytest.raises(UserError, match="none of 6 questions of echo-never rightly"):
        open_study("echo-look", "echo-never").unpruned()


def test_a_named_task_needs_its_data(open_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toprl_export.tasks.task.find_spec", lambda name: None)
    monkeypatch.setitem(study_module.TASKS.get("echo-look").__dict__, "module", "easy_vqa")
    with pytest.raises(MissingExtraError, match="easy_vqa"):
        open_study("echo-look")


@pytest.mark.parametrize(("name", "value"), [("limit", 0), ("jobs", 0)])
def test_numbers_below_one_are_refused(tmp_path: Path, name: str, value: int):
    with pytest.raises(UserError, match=f"{name} is 0, expected at least 1"):
        Scope(tmp_path, **{name: value})
