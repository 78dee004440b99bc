"""Variants of a recipe: the list that comes with the package, and a user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from toprl_export.analysis.variants import BASE, Variant, choose_variants, load_variants
from toprl_export.errors import UserError

HEAD = "format: toprl-export/variants\nversion: 1\nvariants:\n"


def written(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


def test_the_packages_variants_cover_the_papers_appendix():
    variants = {variant.name: variant for variant in load_variants()}
    assert {"discount", "decay of the cost", "reward parts", "reward given", "stages"} <= {
        variant.group for variant in variants.values()
    }
    assert variants["one-shot"].recipe_settings(8) == {"stage_layers": [0]}
    assert variants["stages-4"].recipe_settings(8) == {"stage_layers": [0, 2, 4, 6]}
    assert variants["stages-4"].recipe_settings(28) == {"stage_layers": [0, 7, 14, 21]}
    assert variants["stages-4"].recipe_settings(2) == {"stage_layers": [0, 1]}
    assert variants["terminal"].recipe_settings(8) == {"reward": {"assignment": "terminal"}}


def test_the_base_comes_first_whatever_is_chosen():
    known = load_variants()
    assert choose_variants(known, None) == (BASE, *known)
    names = [variant.name for variant in choose_variants(known, ("terminal", "gamma-1", "base"))]
    assert names == ["base", "gamma-1", "terminal"]
    with pytest.raises(UserError, match="unknown variant 'gama-1'; did you mean 'gamma-1'"):
        choose_variants(known, ("gama-1",))


def test_a_file_of_ones_own(tmp_path: Path):
    file = written(tmp_path, HEAD + "  - {name: a, group: g, text: t, settings: {clip: 0.1}, stage_depths: [0, 0.5]}")
    assert load_variants(file) == (Variant("a", "g", "t", {"clip": 0.1}, (0.0, 0.5)),)
    assert load_variants(file)[0].recipe_settings(12) == {"clip": 0.1, "stage_layers": [0, 6]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (": [", "is not valid YAML"),
        ("[]", "expected an object"),
        ("variants: []", "lacks format"),
        (HEAD.replace("1", "2") + "  []", "version is 2, expected 1"),
        (HEAD + "  - {name: a, group: g}", "lacks variants\\[0\\].text"),
        (HEAD + "  - {name: A b, group: g, text: t}", "no usable name"),
        (HEAD + "  - {name: a, group: g, text: t, setings: {}}", "did you mean 'settings'"),
        (HEAD + "  - {name: a, group: g, text: t, stage_depths: [1]}", "from 0 to below 1"),
        (HEAD + "  - {name: base, group: g, text: t}", "base twice"),
        (HEAD + "  - {name: a, group: g, text: t}\n  - {name: a, group: g, text: u}", "a twice"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(UserError, match=message) as caught:
        load_variants(written(tmp_path, text))
    assert "mine.yaml" in str(caught.value) or "variant" in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.yaml does not exist"):
        load_variants(tmp_path / "none.yaml")
