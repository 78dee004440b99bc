"""Cells of methods: what their identity hangs on, kept results, and measuring against answering and scoring by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.agents import save_tiny_agent
from tests.support.comparison import make_cell
from tests.support.yes_no_model import save_yes_no_model
from toprl_export.agent import load_agent
from toprl_export.comparison import method_cell
from toprl_export.comparison.method_cell import CellRunner, ComparisonSetting, MethodCell, OpenCellRunner, cell_pruning
from toprl_export.errors import UserError
from toprl_export.evaluation.answering import answer_samples
from toprl_export.evaluation.cells import CellStore, digest
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.load import load_model
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.pruning.scorer import make_scorer
from toprl_export.tasks.mini_tasks import EXIST

QUESTIONS = 24  # more than one batch


def test_names_and_places_are_no_part_of_the_identity() -> None:
    cell = make_cell("fastv", questions=10)
    moved = replace(cell.setting, model="elsewhere")
    assert digest(replace(cell, method="FastV", agent="/there", setting=moved)) == digest(cell)


@pytest.mark.parametrize(
    "change",
    [
        {"scorer": "dart"},
        {"task": "mini-count"},
        {"questions": 11},
        {"questions_digest": "other data"},
        {"stage_layers": (0, 3)},
        {"keep_counts": (14, 9)},
        {"seed": 1},
    ],
)
def test_what_answers_depend_on_is_part_of_the_identity(change: dict[str, object]) -> None:
    cell = make_cell("fastv", questions=10)
    assert digest(replace(cell, **change)) != digest(cell)


@pytest.mark.parametrize("change", [{"model_fingerprint": "0" * 64}, {"seed": 1}, {"dtype": "float16"}])
def test_so_is_what_cells_share(change: dict[str, object]) -> None:
    cell = make_cell("fastv", questions=10)
    assert digest(replace(cell, setting=replace(cell.setting, **change))) != digest(cell)


def test_a_result_comes_back_from_its_file(tmp_path: Path) -> None:
    cell, store = make_cell("fastv", questions=10), CellStore(tmp_path)
    scores = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    store.save(cell, cell.result(scores))
    kept = store.load(cell)
    assert kept is not None
    assert np.array_equal(cell.correct(kept), scores)


@pytest.mark.parametrize("result", [{}, {"right": "101"}, {"right": "10110101x1"}, {"right": [1] * 10}])
def test_a_result_of_another_shape_is_one_line(result: dict[str, object]) -> None:
    with pytest.raises(UserError, match="fastv on mini-exist is not 10 digits of 0 or 1"):
        make_cell("fastv", questions=10).correct(result)


def cell_of(method: str, seed: int = 0) -> MethodCell:
    return make_cell(method, seed=seed, questions=QUESTIONS)


def by_hand(adapter: LVLMAdapter, pruning: Pruning | None) -> list[float]:
    samples = list(EXIST.samples("held-out", 0, QUESTIONS))
    answers = answer_samples(ReferenceRunner(adapter), samples, lambda _: pruning)
    return [float(one == sample.answer) for one, sample in zip(answers, samples, strict=True)]


def measured(runner: CellRunner, cell: MethodCell) -> list[float]:
    return cell.correct(runner(cell)).tolist()


def test_a_cell_holds_which_questions_are_right(adapter: LVLMAdapter) -> None:
    runner = CellRunner(adapter)
    full = measured(runner, cell_of("unpruned"))
    fastv = measured(runner, cell_of("fastv"))
    assert full == by_hand(adapter, None)
    assert fastv == by_hand(adapter, Pruning((0, 2), (15, 9), make_scorer("fastv")))
    assert full != fastv and 0 < sum(full) < QUESTIONS


def test_an_agent_prunes_as_its_directory_says(adapter: LVLMAdapter, tmp_path: Path) -> None:
    agent = load_agent(save_tiny_agent(tmp_path / "agent", adapter))
    cell = replace(cell_of("toprl"), scorer=agent.fingerprint, agent=str(tmp_path / "agent"))
    assert measured(CellRunner(adapter), cell) == by_hand(adapter, Pruning((0, 2), (15, 9), agent.actor))
    with pytest.raises(UserError, match="changed while the command ran"):
        CellRunner(adapter)(replace(cell, scorer="another"))


def test_random_pruning_repeats_a_draw_and_draws_differ(adapter: LVLMAdapter) -> None:
    runner = CellRunner(adapter)
    draws = [measured(runner, cell_of("random", seed)) for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[2] != draws[0] or draws[3] != draws[0]


def test_images_are_encoded_once_for_all_cells_of_a_task(adapter: LVLMAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    encode = adapter.encode_image

    def counted(pixels: torch.Tensor) -> torch.Tensor:
        passes.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(adapter, "encode_image", counted)
    runner = CellRunner(adapter)
    kept = [measured(runner, cell_of(method)) for method in ("unpruned", "uniform")]
    assert passes == [20, 4]
    # Without memory to keep them they are encoded for every cell, and the answers are the same.
    monkeypatch.setattr(method_cell, "ENCODED_BYTES", 0)
    runner = CellRunner(adapter)
    assert [measured(runner, cell_of(method)) for method in ("unpruned", "uniform")] == kept
    assert passes == [20, 4] * 3


def test_the_oracle_keeps_what_the_scene_shows(tmp_path: Path) -> None:
    adapter = load_model(str(save_yes_no_model(tmp_path / "model", pixels=192)))  # 576 tokens, as the masks
    cell = replace(make_cell("oracle", questions=3), stage_layers=(0,), keep_counts=(60,), kind="oracle")
    samples = list(EXIST.samples("held-out", 0, 3))
    pruning = cell_pruning(cell, adapter)(samples)
    assert pruning is not None
    runner = ReferenceRunner(adapter)
    tokens = adapter.frontend.tokens([one.question for one in samples])
    visual = runner.encode_image(adapter.frontend.pixels([one.image for one in samples]))
    kept = runner.prefill(tokens, visual, pruning).kept[0].numpy()
    for row, sample in zip(kept, samples, strict=True):
        evidence = np.flatnonzero(sample.evidence)
        assert 0 < len(evidence) <= 60
        assert set(evidence) <= set(row.tolist())
    assert len(CellRunner(adapter)(cell)["right"]) == 3


def test_another_process_refuses_a_model_that_changed(adapter: LVLMAdapter, model_dir: Path) -> None:
    setting = ComparisonSetting(str(model_dir), adapter.answering_fingerprint, "cpu", "float32", 0)
    assert measured(OpenCellRunner(setting)(), cell_of("unpruned")) == by_hand(adapter, None)
    with pytest.raises(UserError, match="changed while the command ran"):
        OpenCellRunner(replace(setting, model_fingerprint="0" * 64))()
