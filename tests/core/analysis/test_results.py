"""Files of an analysis: what they replace, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.analyses import ablation, cliff, transfer
from toprl_export.analysis.ablate import Ablation
from toprl_export.analysis.cliff import Cliff
from toprl_export.analysis.sensitivity import Sensitivity
from toprl_export.analysis.transfer import Transfer
from toprl_export.errors import UserError


def test_what_was_written_is_read_back_and_replaced(tmp_path: Path):
    cliff().write(tmp_path, b"a picture")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cliff.csv", "cliff.json", "cliff.md", "cliff.png"]
    cliff(0.1).write(tmp_path, b"a picture")
    assert Cliff.load(tmp_path) == cliff(0.1) != cliff()
    transfer(None).write(tmp_path, b"a picture")
    assert Transfer.load(tmp_path) == transfer(None)
    ablation().write(tmp_path, b"a picture")
    assert Ablation.load(tmp_path) == ablation()


def test_an_interrupted_write_is_replaced(tmp_path: Path):
    cliff().write(tmp_path, b"a picture")
    for name in ("cliff.csv", "cliff.png"):
        (tmp_path / name).unlink()
    Cliff.check_directory(tmp_path)


@pytest.mark.parametrize("name", ["cliff.md", "cliff.json"])
def test_other_files_are_left_alone(tmp_path: Path, name: str):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} is not from an earlier analysis"):
        cliff().write(tmp_path, b"a picture")
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"
    with pytest.raises(UserError, match=f"{name} is a file, expected a directory"):
        Cliff.check_directory(tmp_path / name)


def test_another_analysis_is_not_read(tmp_path: Path):
    cliff().write(tmp_path, b"a picture")
    (tmp_path / "cliff.json").rename(tmp_path / "sensitivity.json")
    with pytest.raises(UserError, match="has format 'toprl-export/analysis-cliff'"):
        Sensitivity.load(tmp_path)
