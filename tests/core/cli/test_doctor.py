"""doctor: what it finds agrees with what is installed."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path

import pytest

from toprl_export.cli import doctor
from toprl_export.cli.main import main


def report(capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["doctor", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_report_agrees_with_the_installation(capsys: pytest.CaptureFixture[str]):
    import torch

    found = report(capsys)
    assert (found["format"], found["version"]) == ("toprl-export/doctor", 2)
    assert found["python"] == platform.python_version()
    assert found["torch"]["version"] == torch.__version__
    assert len(found["torch"]["gpus"]) == torch.cuda.device_count()
    numpy = next(package for package in found["extras"]["core"]["packages"] if package["name"] == "numpy")
    assert numpy["installed"] == metadata.version("numpy")
    assert {"train", "onnx", "demo", "gpu", "trt", "dev"} < set(found["extras"])
    assert [engine["name"] for engine in found["engines"]][:1] == ["onnx"]
    assert {(trainer["name"], trainer["extra"]) for trainer in found["trainers"]} >= {("toprl", "train")}


def test_an_uninstalled_or_too_old_package_makes_extra_and_engine_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    real = metadata.version

    def version(name: str) -> str:
        if name in ("onnxscript", "onnxruntime-gpu"):
            raise metadata.PackageNotFoundError(name)
        return "1.0.0" if name == "torch" else real(name)

    assert report(capsys)["extras"]["onnx"]["ready"]
    monkeypatch.setattr(metadata, "version", version)
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "onnxscript<1,>=0.6 is missing" in printed
    assert "torch 1.0.0 is not >=2.10" in printed
    found = report(capsys)
    assert [found["extras"][extra]["ready"] for extra in ("core", "onnx", "train")] == [True, False, False]
    assert not found["engines"][0]["ready"]


def test_the_gpu_build_serves_in_place_of_onnxruntime(monkeypatch: pytest.MonkeyPatch):
    real = metadata.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return "1.30.0" if name == "onnxruntime-gpu" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert doctor.examine()["extras"]["onnx"]["ready"]


def test_without_torch_it_still_reports(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert main(["doctor"]) == 0
    assert "torch: not installed" in capsys.readouterr().out


def test_another_packages_engine_is_listed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    installed = tmp_path / "other_engine-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: other-engine\nVersion: 1.0\nProvides-Extra: fast\n"
        "Requires-Dist: no-such-package-here>=2; extra == 'fast'\n"
    )
    (installed / "entry_points.txt").write_text("[toprl_export.engines]\nfast = other:Engine\nplain = other:Plain\n")
    monkeypatch.syspath_prepend(tmp_path)
    engines = {engine["name"]: engine for engine in report(capsys)["engines"]}
    assert (engines["fast"]["package"], engines["fast"]["extra"], engines["fast"]["ready"]) == (
        "other-engine",
        "fast",
        False,
    )
    assert (engines["plain"]["extra"], engines["plain"]["ready"]) == (None, True)
