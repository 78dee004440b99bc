"""Errors: what the message says, and which import failures an extra explains."""

from __future__ import annotations

import copy
import importlib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from toprl_export.errors import EXTRA_OF_MODULE, MissingExtraError, UserError, missing_extra, require

DISTRIBUTION_OF_MODULE = {
    "cuda": "cuda-bindings",
    "tensorrt_rtx": "tensorrt_rtx_cu13",
    "sklearn": "scikit-learn",
    "onnx_ir": "onnx-ir",
    "easy_vqa": "easy-vqa",
}


def test_missing_extra_names_module_and_command():
    error = MissingExtraError("torch", "train")
    assert isinstance(error, UserError)
    assert "torch" in str(error)
    assert "pip install 'toprl-export[train]'" in str(error)


def test_missing_extra_can_be_copied_as_it_must_be_from_one_process_to_another():
    again = copy.copy(MissingExtraError("easy_vqa", "demo"))
    assert str(again) == str(MissingExtraError("easy_vqa", "demo")) and again.extra == "demo"


def test_require_returns_the_module():
    assert require("json.decoder", "train") is importlib.import_module("json.decoder")


def test_require_names_the_extra_of_an_absent_package():
    with pytest.raises(MissingExtraError, match=r"no_such_package_here.*toprl-export\[onnx\]"):
        require("no_such_package_here.part", "onnx")


def test_require_does_not_hide_a_broken_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "half_installed.py").write_text("import a_dependency_that_is_gone\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_dependency_that_is_gone"):
        require("half_installed", "train")


def test_missing_extra_explains_only_whole_optional_packages():
    explained = missing_extra(ModuleNotFoundError("", name="torch"))
    assert explained is not None and (explained.module, explained.extra) == ("torch", "train")
    assert missing_extra(ModuleNotFoundError("", name="torch.no_such_part")) is None
    assert missing_extra(ModuleNotFoundError("", name="something_else")) is None


@pytest.mark.parametrize(("module", "extra"), EXTRA_OF_MODULE.items())
def test_the_named_extra_really_brings_the_module(module: str, extra: str):
    requirements = [Requirement(line) for line in metadata.requires("toprl-export") or []]
    brought = {canonicalize_name(r.name) for r in requirements if r.marker and r.marker.evaluate({"extra": extra})}
    assert canonicalize_name(DISTRIBUTION_OF_MODULE.get(module, module)) in brought
