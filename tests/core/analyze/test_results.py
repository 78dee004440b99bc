"""Files of an analysis: what they replace, and the pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toprl_export.analyze.ablate import Ablation, AblationEntry, AblationRow, AblationTask
from toprl_export.analyze.cliff import Cliff, CliffCurve, CliffPoint
from toprl_export.analyze.results import Provenance, csv_text, percent, points
from toprl_export.analyze.sensitivity import RATIOS, Sensitivity, SensitivityCell, SensitivityMap
from toprl_export.analyze.transfer import Transfer, TransferColumn, TransferEntry
from toprl_export.errors import UserError
from toprl_export.evaluation.estimates import Estimate

MADE = Provenance("mini", "f" * 64, 576, 8, "cpu", 0, "toprl-export analyze", "2026-11-20", {"torch": "2"})
TASKS = ("mini-read", "mini-colour", "mini-count")


def estimate(value: float) -> Estimate:
    return Estimate(value, (max(value - 0.05, 0.0), value + 0.03))


def cliff(step: float = 0.12) -> Cliff:
    points_ = tuple(CliffPoint(at, estimate(step * at), estimate(step * at)) for at in range(9))
    return Cliff(MADE, tuple(CliffCurve(name, "perception", 200, points_) for name in TASKS))


def sensitivity(layers: int = 8) -> Sensitivity:
    cells = tuple(
        SensitivityCell(layer, ratio, round(576 * ratio), estimate(ratio), estimate(ratio))
        for layer in range(layers)
        for ratio in RATIOS
    )
    maps = tuple(SensitivityMap(name, "reasoning", 200, cells) for name in TASKS)
    return Sensitivity(MADE, tuple(range(layers)), RATIOS, maps)


def transfer(relative: float | None = 0.8) -> Transfer:
    def entries(task: str) -> tuple[TransferEntry, ...]:
        return tuple(
            TransferEntry(name, estimate(0.7), None if relative is None else estimate(relative), estimate(-0.1))
            for name in TASKS
        )

    columns = tuple(TransferColumn(name, "perception", 200, estimate(0.9), entries(name)) for name in TASKS)
    return Transfer(MADE, 64, TASKS, dict.fromkeys(TASKS, (0, 1, 2)), columns)


def ablation(variants: int = 5) -> Ablation:
    entries = tuple(AblationEntry(name, estimate(0.8), None, estimate(-0.02), (0.8,)) for name in TASKS)
    tasks = tuple(AblationTask(name, "perception", 200, estimate(0.9)) for name in TASKS)
    rows = tuple(
        AblationRow(
            f"v{at}",
            f"what is varied here {at // 2}",
            f"some variant {at}",
            estimate(0.9),
            estimate(0.01 * at),
            entries,
        )
        for at in range(variants + 1)
    )
    return Ablation(MADE, "toprl", 64, (0,), tasks, rows)


def pixels(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("L"))


@pytest.mark.parametrize(
    ("one", "other"),
    [(cliff(), cliff(0.08)), (sensitivity(3), sensitivity(2)), (transfer(), transfer(0.6)), (ablation(), ablation(2))],
    ids=["cliff", "sensitivity", "transfer", "ablation"],
)
def test_pictures_show_their_figures_with_nothing_cut_off(one, other):
    picture = one.picture()
    shown = pixels(picture)
    assert shown.shape[1] >= 1000 and shown.shape[0] >= 400
    border = np.concatenate([shown[:3].ravel(), shown[-3:].ravel(), shown[:, :3].ravel(), shown[:, -3:].ravel()])
    assert (border == 255).all()
    assert one.picture() == picture
    changed = pixels(other.picture())
    assert changed.shape != shown.shape or (changed != shown).mean() > 0.001


def test_a_matrix_whose_diagonal_has_nothing_right_is_drawn():
    assert pixels(transfer(None).picture()).size
    assert "/ –" in transfer(None).markdown()


def test_what_was_written_is_read_back_and_replaced(tmp_path: Path):
    cliff().write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cliff.csv", "cliff.json", "cliff.md", "cliff.png"]
    cliff(0.1).write(tmp_path)
    assert Cliff.load(tmp_path) == cliff(0.1) != cliff()
    transfer(None).write(tmp_path)
    assert Transfer.load(tmp_path) == transfer(None)
    ablation().write(tmp_path)
    assert Ablation.load(tmp_path) == ablation()


def test_an_interrupted_write_is_replaced(tmp_path: Path):
    cliff().write(tmp_path)
    for name in ("cliff.csv", "cliff.png"):
        (tmp_path / name).unlink()
    Cliff.check_place(tmp_path)


@pytest.mark.parametrize("name", ["cliff.md", "cliff.json"])
def test_other_files_are_left_alone(tmp_path: Path, name: str):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} is not from an earlier analysis"):
        cliff().write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"
    with pytest.raises(UserError, match=f"{name} is a file, expected a directory"):
        Cliff.check_place(tmp_path / name)


def test_another_analysis_is_not_read(tmp_path: Path):
    cliff().write(tmp_path)
    (tmp_path / "cliff.json").rename(tmp_path / "sensitivity.json")
    with pytest.raises(UserError, match="has format 'toprl-export/analysis-cliff'"):
        Sensitivity.load(tmp_path)


def test_figures_as_text():
    assert percent(Estimate(0.975, (0.96, 0.984))) == "97.5% [96.0%, 98.4%]"
    assert points(Estimate(-0.012, (-0.03, 0.004))) == "-1.2 [-3.0, +0.4]"
    assert csv_text([{"a": "x, y", "b": 1}]) == 'a,b\n"x, y",1\n'
