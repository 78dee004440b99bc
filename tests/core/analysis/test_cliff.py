"""The information cliff."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from toprl_export.analysis.cliff import Cliff, CliffCurve, CliffPoint, measure_cliff
from toprl_export.analysis.pictures import draw
from toprl_export.analysis.study import OneCut, Study
from toprl_export.evaluation.estimates import Estimate


def test_a_point_for_each_layer_and_the_unpruned_model_last(open_study: Callable[..., Study]):
    study = open_study()
    look, think = measure_cliff(study).curves
    assert [point.layer for point in look.points] == [0, 1, 2, 3, 4]
    assert (look.level, think.level) == ("perception", "reasoning")
    assert look.points[-1].accuracy.value == 1 and think.points[-1].accuracy.value == pytest.approx(5 / 6)
    assert look.points[-1].retention == think.points[-1].retention == Estimate(1.0, (1.0, 1.0))
    assert look.points[0].retention.value < 0.5
    for layer in range(4):
        (correct,) = study.correctness([(study.tasks[1], OneCut(layer, 0))], "again")
        assert think.points[layer].accuracy.value == pytest.approx(correct.mean())
        assert think.points[layer].retention.value == pytest.approx(correct.sum() / 5)


def curve(*retentions: float) -> CliffCurve:
    points = [CliffPoint(at, Estimate(x, (x, x)), Estimate(x, (x, x))) for at, x in enumerate(retentions)]
    return CliffCurve("t", "perception", 10, tuple(points))


@pytest.mark.parametrize(
    ("retentions", "layer"),
    [((0.1, 0.5, 0.96, 1.0), 2), ((0.1, 0.97, 0.9, 1.0), 3), ((1.0, 0.95, 1.0), 0), ((0.1, 0.2, 1.0), 2)],
)
def test_the_cliff_is_past_where_nothing_falls_any_more(retentions: tuple[float, ...], layer: int):
    assert curve(*retentions).past_cliff == layer


def test_files_say_what_was_found(open_study: Callable[..., Study]):
    study = open_study()
    found = measure_cliff(study)
    directory = study.scope.output_dir
    found.write(directory, draw(found))
    assert Cliff.load(directory) == found
    lines = (directory / "cliff.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 5 and lines[5].startswith("echo-look,perception,none,6,1,")
    text = (directory / "cliff.md").read_text()
    assert "| echo-think | reasoning | 6 | 83.3% [43.6%, 97.0%] |" in text and "tiny" in text
    assert found.summary().count("of the accuracy is retained without the image") == 2
