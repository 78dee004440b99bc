"""pareto.png: the points are the averages, and the picture can be read."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tests.support.comparison import made_up_comparison
from toprl_export.comparison.pareto import method_lines, pareto_png


def test_lines_are_the_averages_of_the_methods_that_have_all_tasks() -> None:
    comparison = made_up_comparison()
    lines = {line.name: line for line in method_lines(comparison)}
    assert list(lines) == ["random", "fastv", "dart", "toprl"]
    average = comparison.average("toprl", 12)
    assert average is not None
    assert lines["toprl"].retention == pytest.approx((100 * average.retention.value,))
    assert (lines["toprl"].kept, lines["toprl"].latency) == ((11.75,), (21.0,))


def test_a_method_that_was_not_timed_has_no_place_in_the_panel_of_latency() -> None:
    comparison = made_up_comparison()
    assert comparison.latency is not None
    entries = tuple(one for one in comparison.latency.entries if one.method != "dart")
    lines = method_lines(replace(comparison, latency=replace(comparison.latency, entries=entries)))
    assert {line.name: len(line.latency) for line in lines} == {"random": 1, "fastv": 1, "dart": 0, "toprl": 1}


def test_the_picture_has_a_panel_more_where_latency_was_measured() -> None:
    both, one = (Image.open(BytesIO(pareto_png(made_up_comparison(latency)))) for latency in (True, False))
    assert both.format == one.format == "PNG"
    assert both.width > one.width >= 900
    vermilion = np.array([0xD5, 0x5E, 0x00])
    for picture in (both, one):  # the agents' colour is there
        pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert (np.abs(pixels - vermilion).sum(-1) < 12).sum() > 40
