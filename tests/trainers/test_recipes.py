import pytest

from toprl_export.analysis.variants import load_variants
from toprl_export.errors import UserError
from toprl_trainers.recipes import load_recipe, recipe_names
from toprl_trainers.toprl.config import TOPRLConfig


def written(path, text):
    path.write_text(text)
    return str(path)


def test_every_recipe_of_the_package_holds_possible_settings():
    for name in recipe_names():
        TOPRLConfig.from_mapping(load_recipe(name, "toprl", "mini-colour").settings)


def test_a_recipe_says_what_its_base_leaves_out_or_says_otherwise(tmp_path):
    base = written(
        tmp_path / "base.yaml",
        "method: toprl\nsettings: {updates: 5, images: 9, reward: {quality: binary, cost_weight: 2}}\n"
        "tasks: {mini-count: {images: 11}}\n",
    )
    over = written(
        tmp_path / "over.yaml", f"method: toprl\nbase: {base}\nsettings: {{updates: 7, reward: {{cost_weight: 3}}}}\n"
    )
    assert load_recipe(over, "toprl", "mini-colour").settings == {
        "updates": 7,
        "images": 9,
        "reward": {"quality": "binary", "cost_weight": 3},
    }
    assert load_recipe(over, "toprl", "mini-count").settings["images"] == 11


def test_a_tasks_nested_settings_leave_the_recipes_others_alone(tmp_path):
    recipe = written(
        tmp_path / "mine.yaml",
        "method: toprl\nbase: toprl-paper\nsettings: {reward: {quality: dense, cost_weight: 3}}\n"
        "tasks: {mini-count: {reward: {budget_weight: 1}}}\n",
    )
    reward = load_recipe(recipe, "toprl", "mini-count").settings["reward"]
    assert reward == {"quality": "dense", "cost_weight": 3, "budget_weight": 1, "cost_decay": 0.95}


def test_settings_for_a_task_that_there_is_not_are_refused(tmp_path):
    recipe = written(tmp_path / "mine.yaml", "method: toprl\ntasks: {mini-colr: {images: 3}}\n")
    with pytest.raises(UserError, match=r"unknown task of recipe .*'mini-colr'; did you mean 'mini-colour'"):
        load_recipe(recipe, "toprl", "mini-count")
    mine = written(tmp_path / "own.yaml", "method: toprl\ntasks: {my-task: {images: 3}}\n")
    assert load_recipe(mine, "toprl", "my-task").settings == {"images": 3}


def test_a_packaged_recipe_can_be_the_base():
    own, text = (load_recipe(name, "toprl", "mini-colour").settings for name in ("toprl", "toprl-text"))
    assert text == {**own, "condition": "text"}


def test_every_packaged_variant_is_a_recipe():
    own = load_recipe("toprl", "toprl", "mini-colour").settings
    for variant in load_variants():
        TOPRLConfig.from_mapping({**own, **variant.recipe_settings(8)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("method: toprl\nbase: 3\n", "base is 3, expected the name or file of another recipe"),
        ("method: toprl\nbase: nothing-like-it\n", "unknown recipe 'nothing-like-it'"),
        ("method: toprl\nbas: toprl\n", "unknown part of recipe .*'bas'; did you mean 'base'"),
        ("method: other\n", "is for method 'other', not 'toprl'"),
    ],
)
def test_a_wrong_base_is_one_clear_line(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        load_recipe(written(tmp_path / "wrong.yaml", content), "toprl", "mini-colour")


def test_recipes_that_are_each_others_base_are_refused(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    written(first, f"method: toprl\nbase: {second}\n")
    written(second, f"method: toprl\nbase: {first}\n")
    with pytest.raises(UserError, match="expected the name or file of another recipe"):
        load_recipe(str(first), "toprl", "mini-colour")
