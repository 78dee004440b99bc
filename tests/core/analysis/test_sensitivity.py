"""Pruning sensitivity."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from toprl_export.analysis.pictures import draw
from toprl_export.analysis.sensitivity import Sensitivity, default_layers, measure_sensitivity, tokens_kept
from toprl_export.analysis.study import OneCut, Study
from toprl_export.errors import UserError


def test_a_cell_for_each_layer_and_ratio(open_study: Callable[..., Study]):
    study = open_study("echo-think")
    found = measure_sensitivity(study, (2, 0), (0.0, 0.4, 1.0))
    (one,) = found.maps
    assert [(cell.layer, cell.ratio, cell.kept) for cell in one.cells] == [
        (layer, ratio, kept) for layer in (0, 2) for ratio, kept in ((0.0, 0), (0.4, 10), (1.0, 25))
    ]
    assert [cell.retention.value for cell in one.cells if cell.ratio == 1] == [1.0, 1.0]
    for cell in one.cells:
        if cell.ratio < 1:
            (correct,) = study.correctness([(study.tasks[0], OneCut(cell.layer, cell.kept))], "again")
            assert cell.accuracy.value == pytest.approx(correct.mean())
    assert len({cell.accuracy.value for cell in one.cells}) > 1


def test_files_say_what_was_found(open_study: Callable[..., Study]):
    study = open_study("echo-look")
    found = measure_sensitivity(study, (1,), (0.0, 1.0))
    found.write(study.scope.output_dir, draw(found))
    assert Sensitivity.load(study.scope.output_dir) == found
    lines = (study.scope.output_dir / "sensitivity.csv").read_text().splitlines()
    assert lines[2].startswith("echo-look,perception,1,1.0,25,6,1,")
    assert "| before 1 |" in (study.scope.output_dir / "sensitivity.md").read_text()
    assert "100% before layer 1" in found.summary()


def test_a_deep_decoder_is_cut_where_the_paper_cuts_it():
    assert default_layers(32) == (2, 8, 16, 24)
    assert default_layers(8) == tuple(range(8))


def test_the_smallest_shares_keep_a_token_and_only_zero_keeps_none():
    assert [tokens_kept(ratio, 576) for ratio in (0.0, 0.1, 0.5, 1.0)] == [0, 58, 288, 576]
    assert tokens_kept(0.1, 4) == 1


@pytest.mark.parametrize(
    ("layers", "ratios", "message"),
    [((4,), (0.5,), "within 0 to 3"), ((), (0.5,), "the layers are none"), ((0,), (1.2,), "keep ratios")],
)
def test_impossible_cuts_are_one_line(
    open_study: Callable[..., Study], layers: tuple[int, ...], ratios: tuple[float, ...], message: str
):
    with pytest.raises(UserError, match=message):
        measure_sensitivity(open_study("echo-look"), layers, ratios)
