"""Registry: lazy import, entry points, and the lines a user gets for a wrong or broken name."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from toprl_export.errors import MissingExtraError, UserError
from toprl_export.registry import Registry, unknown_name

GROUP = "toprl_export_test.things"


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on the path with one module and one installed distribution that registers it."""
    (tmp_path / "thing_module.py").write_text("class Thing:\n    inner = 'deep'\n")
    installed = tmp_path / "thing_plugin-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: thing-plugin\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[{GROUP}]\nadded = thing_module:Thing\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "thing_module", raising=False)
    return tmp_path


def test_names_come_without_importing(plugin: Path):
    registry: Registry[object] = Registry("thing", {"own": "thing_module:Thing.inner"}, GROUP)
    assert registry.names() == ["own", "added"]
    assert "added" in registry and "other" not in registry
    assert "thing_module" not in sys.modules


def test_get_imports_built_in_and_entry_point(plugin: Path):
    registry: Registry[object] = Registry("thing", {"own": "thing_module:Thing.inner"}, GROUP)
    assert registry.get("own") == "deep"
    assert registry.get("added") is sys.modules["thing_module"].Thing


def test_unknown_name_lists_the_known_and_suggests():
    registry: Registry[object] = Registry("task", {"mini-colour": "a:b", "mini-count": "a:c"})
    with pytest.raises(UserError) as caught:
        registry.get("mini-color")
    assert str(caught.value) == "unknown task 'mini-color'; did you mean 'mini-colour'? known: mini-colour, mini-count"


def test_unknown_name_without_a_close_one():
    assert str(unknown_name("engine", "zzz", ["onnx"])) == "unknown engine 'zzz'; known: onnx"
    assert str(unknown_name("engine", "zzz", [])) == "unknown engine 'zzz'; known: none is installed"


def test_two_packages_with_the_same_name_are_refused(plugin: Path):
    registry: Registry[object] = Registry("thing", {"added": "thing_module:Another"}, GROUP)
    with pytest.raises(UserError, match="registered twice, as thing_module:Another and as thing_module:Thing"):
        registry.names()


@pytest.mark.parametrize("target", ["thing_module:Gone", "thing_gone:Thing"])
def test_a_broken_registration_is_one_clear_line(plugin: Path, target: str):
    registry: Registry[object] = Registry("thing", {"broken": target})
    with pytest.raises(UserError, match=f"thing 'broken' cannot be loaded from {target}"):
        registry.get("broken")


def test_a_missing_extra_is_named(plugin: Path, monkeypatch: pytest.MonkeyPatch):
    (plugin / "needs_sklearn.py").write_text("import sklearn\n")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    registry: Registry[object] = Registry("trainer", {"forest": "needs_sklearn:Trainer"})
    with pytest.raises(MissingExtraError, match=r"toprl-export\[train\]"):
        registry.get("forest")


def test_the_projects_own_entry_points_are_registered():
    for group, name in (("toprl_export.trainers", "toprl"), ("toprl_export.engines", "onnx")):
        assert name in Registry[object]("thing", group=group)
        assert name in {point.name for point in metadata.entry_points(group=group)}
