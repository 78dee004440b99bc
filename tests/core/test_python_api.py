"""The Python API refuses values of other types in one line of its own, before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toprl_export
from tests.support.fake_engine import made_up_bundle
from toprl_export.errors import UserError
from toprl_export.registry import Registry


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fake = Registry("engine", {"fake": "tests.support.fake_engine:FakeEngine"})
    monkeypatch.setattr("toprl_export.engine.ENGINES", fake)
    return made_up_bundle(tmp_path / "bundle").dir


IMAGE = np.zeros((8, 8, 3), np.uint8)
GENERATE = {"images": IMAGE, "prompts": "is it red?"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prompts": None}, "prompts is None"),
        ({"prompts": 3}, "prompts is 3"),
        ({"prompts": ["is it red?", None]}, "prompts is"),
        ({"prompts": b"is it red?"}, "expected a list"),
        ({"prompts": "is it \udcff?"}, "is not UTF-8"),
        ({"images": None}, "an image is a NoneType"),
        ({"images": 3.5}, "an image is a float"),
        ({"images": [IMAGE, None]}, "an image is a NoneType"),
        ({"images": []}, "no image was given"),
        ({"images": np.zeros((2, 8, 8, 3), np.uint8)}, "expected uint8"),
        ({"budget_kept": "8"}, "budget_kept is '8', expected a whole number"),
        ({"budget_kept": True}, "budget_kept is True"),
        ({"budget_kept": 8.0}, "budget_kept is 8.0"),
        ({"budget_kept": -8}, "has no budget of -8"),
        ({"max_new_tokens": 0}, "expected at least 1"),
        ({"max_new_tokens": float("nan")}, "max_new_tokens is nan"),
        ({"task": 5}, "task is 5, expected a text"),
        ({"task": "nothing"}, "nothing"),
    ],
)
def test_questions_of_other_types(bundle: Path, changes: dict[str, Any], expected: str):
    with toprl_export.load(bundle) as loaded, pytest.raises(UserError, match=expected) as caught:
        loaded.generate(**GENERATE | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda path: toprl_export.load(3), "load: directory is 3"),
        (lambda path: toprl_export.load(path, threads="2"), "load: threads is '2'"),
        (lambda path: toprl_export.load(path, threads=10_000), "threads is 10000"),
        (lambda path: toprl_export.load(path, unpruned=1), "load: unpruned is 1"),
        (lambda path: toprl_export.train(seed=1.5), "train: seed is 1.5"),
        (lambda path: toprl_export.train(budgets_kept="192"), "train: budgets_kept is '192'"),
        (lambda path: toprl_export.train(budgets_kept=[True]), "train: budgets_kept is"),
        (lambda path: toprl_export.train(condition="image"), "train: condition is 'image'"),
        (lambda path: toprl_export.train(output_dir="/tmp/\udcff"), "is not UTF-8"),
        (lambda path: toprl_export.build(None, output_dir=path), "build: model is None"),
        (lambda path: toprl_export.build("mini", "agent", output_dir=path), "build: agents is 'agent'"),
        (lambda path: toprl_export.build("mini", output_dir="here"), "build: output_dir is 'here'"),
        (lambda path: toprl_export.validate("bundle"), "validate: bundle is 'bundle'"),
        (lambda path: toprl_export.ValidationOptions(limit="5"), "limit is '5'"),
        (lambda path: toprl_export.ValidationOptions(limit=True), "limit is True"),
        (lambda path: toprl_export.ValidationOptions(parity_questions=0), "parity_questions is 0, expected at least 1"),
        (lambda path: toprl_export.CompareRequest(path, budgets_kept=(1.5,)), "budgets_kept is"),
        (lambda path: toprl_export.CompareRequest(path, limit=None), "limit is None"),
    ],
)
def test_calls_with_other_types(bundle: Path, call: Callable[[Path], Any], expected: str):
    with pytest.raises(UserError, match=expected) as caught:
        call(bundle)
    assert "\n" not in str(caught.value)
