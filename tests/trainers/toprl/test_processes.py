"""Two CPU processes over gloo against one process with all the images, and how an error in one ends all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.trainers.process_world import COUNT, learned, start, wanted

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    folder = tmp_path_factory.mktemp("processes")
    assert start(folder, weights) == [0, 9]
    return folder


def furthest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours if name != "curves")


@pytest.mark.slow
@pytest.mark.parametrize("threshold", ["per-image", "initial"])
def test_two_processes_learn_what_one_learns_from_all_the_images(
    weights: Path, folder: Path, tmp_path: Path, threshold: str
):
    alone = learned(wanted(weights, tmp_path, 8, threshold=threshold))
    both = [load_file(folder / f"{threshold}-{index}.safetensors") for index in range(COUNT)]
    assert all(torch.equal(both[0][name], both[1][name]) for name in alone)
    assert furthest(both[0], alone) < TOLERANCE
    torch.testing.assert_close(both[0]["curves"], alone["curves"], atol=1e-4, rtol=1e-4)
    # the controls: processes that do not sum their gradients, and one process with one process's images
    unsummed = [load_file(folder / f"unsummed-{index}.safetensors") for index in range(COUNT)]
    assert all(furthest(each, alone) > 100 * TOLERANCE for each in unsummed)
    assert furthest(learned(wanted(weights, tmp_path, 4, threshold=threshold)), alone) > 100 * TOLERANCE


@pytest.mark.slow
def test_an_interrupted_run_of_two_processes_ends_with_the_same_bits(folder: Path):
    for name in ("actor.safetensors", "critic.safetensors"):
        whole, broken = (load_file(folder / run / "agent" / name) for run in ("whole", "broken"))
        assert all(torch.equal(whole[key], broken[key]) for key in whole)
    curves = [(folder / run / "agent" / "curves.csv").read_text() for run in ("whole", "broken")]
    assert curves[0] == curves[1]
    assert [path.name for path in (folder / "broken").iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_the_main_process_alone_reports(folder: Path):
    assert "random pruning" in (folder / "summary-whole-0.txt").read_text()
    assert (folder / "summary-whole-1.txt").read_text() == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("full", "no space left on the disk, raised by the test"),
        ("reward", "NaN reward, raised by the test"),
        ("other", "do not find the same settings or earlier results"),
        ("lost", "the processes of this training lost contact, so one may have ended early ("),
    ],
)
def test_a_mistake_in_one_process_ends_all_and_is_told_once(folder: Path, case: str, message: str):
    assert message in (folder / f"{case}-0.txt").read_text()
    if case != "lost":
        assert (folder / f"{case}-1.txt").read_text() == "silent 0"
