"""Recipes: the packaged ones load, unknown and impossible settings are one clear line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from toprl_export.errors import UserError
from toprl_trainers.recipes import load_recipe, recipe_names
from toprl_trainers.toprl.config import TOPRLConfig, WarmStart


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipes_are_valid_for_every_task_they_name(name: str):
    for task in ("mini-colour", "easy-vqa", "a task of your own"):
        TOPRLConfig.from_mapping(load_recipe(name, "toprl", task).settings)


def test_settings_of_the_task_win(tmp_path: Path):
    path = write(tmp_path, "method: toprl\nsettings: {updates: 5, clip: 0.1}\ntasks: {mini-read: {updates: 9}}\n")
    assert load_recipe(path, "toprl", "mini-read").settings == {"updates": 9, "clip": 0.1}
    assert load_recipe(path, "toprl", "mini-count").settings == {"updates": 5, "clip": 0.1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: toprl\nupdates: 5\n", "unknown part of recipe .*'updates'.*settings"),
        ("method: vpruner\n", "for method 'vpruner', not 'toprl'"),
        ("- a\n", "is not a mapping"),
        ("method: toprl\nsettings: 5\n", "settings is 5, expected a mapping"),
        ("method: [\n", "not valid YAML"),
    ],
)
def test_a_recipe_that_is_none_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(UserError, match=message):
        load_recipe(write(tmp_path, text), "toprl", "mini-read")


def test_unknown_recipes_list_the_known():
    with pytest.raises(UserError, match=r"unknown recipe 'toprll'; did you mean 'toprl'\?"):
        load_recipe("toprll", "toprl", "mini-read")
    with pytest.raises(UserError, match="does not exist"):
        load_recipe("nowhere/mine.yaml", "toprl", "mini-read")


def test_a_mapping_is_read_with_its_reward_and_layers():
    config = TOPRLConfig.from_mapping({"updates": 3, "stage_layers": [0, 4], "reward": {"assignment": "terminal"}})
    assert (config.updates, config.stage_layers, config.reward.assignment) == (3, (0, 4), "terminal")
    assert TOPRLConfig.from_mapping({}) == TOPRLConfig()


@pytest.mark.parametrize(
    "wrong",
    [
        {"updats": 3},
        {"updates": 0},
        {"updates": 2.5},
        {"updates": True},
        {"images": 4, "images_per_update": 8},
        {"minibatches": 9},
        {"clip": 0},
        {"discount": 1.5},
        {"gae_lambda": -0.1},
        {"learning_rate": "fast"},
        {"temperature_start": 0.1, "temperature_end": 0.2},
        {"training_fraction_kept": 0},
        {"threshold": "none"},
        {"precision": "int8"},
        {"entropy_weight": -1},
        {"stage_layers": 3},
        {"reward": 3},
        {"reward": {"bleu": 1}},
        {"condition": "image"},
        {"residual": "attention"},
        {"warm_start": "fastv-p"},
        {"warm_start": {"baseline": "fastv-p", "updates": 0}},
    ],
    ids=str,
)
def test_wrong_settings_are_named(wrong: dict[str, object]):
    with pytest.raises(UserError, match="bleu" if wrong == {"reward": {"bleu": 1}} else list(wrong)[-1].split("_")[0]):
        TOPRLConfig.from_mapping(wrong)


def test_a_baseline_to_imitate_is_read():
    config = TOPRLConfig.from_mapping({"warm_start": {"baseline": "fastv-p", "updates": 12}})
    assert config.warm_start == WarmStart("fastv-p", 12)
    assert TOPRLConfig.from_mapping({"warm_start": None}).warm_start is None
    assert TOPRLConfig.from_mapping({"warm_start": {"baseline": "divprune"}}).warm_start == WarmStart("divprune")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"baseline": "fastvp"}, "unknown baseline to imitate in warm_start: 'fastvp'; did you mean 'fastv-p'"),
        ({"baseline": "random"}, "'random'"),
        ({"baseline": "oracle"}, "'oracle'"),
        ({"updates": 3}, "'None'"),
        ({"baseline": "fastv", "batches": 3}, "'batches'"),
    ],
    ids=str,
)
def test_what_cannot_be_imitated_is_refused(wrong: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        TOPRLConfig.from_mapping({"warm_start": wrong})


def test_the_recipe_that_sees_the_question_differs_from_the_default_in_that_alone():
    blind, asking = (
        TOPRLConfig.from_mapping(load_recipe(name, "toprl", "mini-read").settings) for name in ("toprl", "toprl-text")
    )
    assert asking.condition == "text"
    assert replace(asking, condition="none") == blind


def test_limits_keep_the_settings_possible():
    config = TOPRLConfig().limited(updates=7, images=1)
    assert (config.updates, config.images, config.images_per_update, config.minibatches) == (7, 1, 1, 1)
    assert TOPRLConfig().limited(None, None) == TOPRLConfig()
