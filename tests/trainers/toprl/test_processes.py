"""Two CPU processes over gloo against one process with all the images, and how they end together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.trainers.process_world import COUNT, learned, start, wanted
from tests.trainers.tiny_world import request
from toprl_export.errors import UserError
from toprl_trainers.toprl.draws import ImageDraws
from toprl_trainers.toprl.processes import ALONE, Processes, Share, launched_processes
from toprl_trainers.toprl.run import Run

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
        ("full", "no space left on the disk, says the test"),
        ("reward", "a reward is not a number, says the test"),
        ("other", "do not find the same settings or earlier results"),
        ("lost", "the processes of this training lost each other, so one may have ended early ("),
    ],
)
def test_a_mistake_in_one_process_ends_all_and_is_told_once(folder: Path, case: str, message: str):
    assert message in (folder / f"{case}-0.txt").read_text()
    if case != "lost":
        assert (folder / f"{case}-1.txt").read_text() == "silent 0"


def test_parts_cover_everything_once():
    for count in (1, 2, 3, 5):
        parts = [Processes(index, count).part(13) for index in range(count)]
        assert [thing for part in parts for thing in part] == list(range(13))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_process_that_was_not_launched_is_alone():
    assert launched_processes() is ALONE
    x = torch.rand(3)
    assert ALONE.total(x) is x and Share.everything(3).rows({"x": x})["x"] is x
    with pytest.raises(UserError, match="mine"), ALONE.together():
        raise UserError("mine")


def test_a_model_on_another_processs_gpu_is_refused():
    second = Processes(1, 2, torch.device("cuda:1"))
    second.check_device(torch.device("cuda:1"))
    second.check_device(torch.device("cuda"))
    with pytest.raises(UserError, match="process 1 was launched for cuda:1, but its model is on cuda:0: name no GPU"):
        second.check_device(torch.device("cuda:0"))


def test_images_that_cannot_be_divided_are_refused(weights: Path, tmp_path: Path):
    asked = request(weights, tmp_path)  # 32 images, 4 a process
    with pytest.raises(UserError, match=r"leave 2 for the last.* 5 processes"):
        Run.of(replace(asked, images=22), Processes(0, 5))
    with pytest.raises(UserError, match="leave 3 for the last"):
        Run.of(replace(asked, images=3), Processes(0, 5))
    assert Run.of(asked, Processes(0, 5)).images_per_update == 20
    assert Run.of(asked, Processes(0, 2)).digest != Run.of(asked).digest


@pytest.mark.parametrize(("updates", "rollouts"), [(1, 8 * 8), (3, 21 * 8), (4, 29 * 8), (7, 50 * 8)])
def test_rollouts_are_counted_to_the_last_one(weights: Path, tmp_path: Path, updates: int, rollouts: int):
    assert Run.of(wanted(weights, tmp_path, 8)).rollouts(updates) == rollouts


def test_draws_belong_to_an_image_and_a_token():
    def noise(images: range, positions: Tensor) -> list[Tensor]:
        draws = ImageDraws(3, ("test",), images, 2, 25)
        return [draws.noise(positions) for _ in range(2)]

    everything = torch.arange(25).expand(8, -1)
    whole, part = noise(range(4), everything), noise(range(2, 4), everything[:4])
    assert all(torch.equal(mine, all_of_them[:, 4:]) for mine, all_of_them in zip(part, whole, strict=True))
    few = torch.tensor([[3, 7, 24]]).expand(8, -1)
    assert all(torch.equal(a, b[..., [3, 7, 24]]) for a, b in zip(noise(range(4), few), whole, strict=True))
    assert not torch.equal(whole[0], whole[1])
    rows = whole[0].flatten(2).transpose(0, 1).flatten(1)
    assert len(rows.unique(dim=0)) == 8
