"""The report's wrong answers and pictures."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image

from toprl_export.evaluation.overlay import png_bytes
from toprl_export.validation.examples import Example, render_examples
from toprl_export.validation.html import render_html
from toprl_export.validation.report import Report, WrongAnswer


@pytest.fixture
def wrong_report(report: Report) -> Report:
    wrong = WrongAnswer(7, "Is <b>it</b> red?", "yes", "", "yes")
    return replace(report, budgets=(report.budgets[0], replace(report.budgets[1], wrong_answers=(wrong,))))


def test_wrong_answers_are_shown_with_what_was_expected(wrong_report: Report) -> None:
    page = render_examples(wrong_report, ())
    cells = re.findall(r"<td class='text'>(.*?)</td>", page)
    assert cells == ["64", "Is &lt;b&gt;it&lt;/b&gt; red?", "yes", "(none)", "yes"]


def test_none_wrong_is_said(report: Report) -> None:
    assert "answered every question right" in render_examples(report, ())


def test_a_picture_is_in_the_page_itself(wrong_report: Report) -> None:
    png = png_bytes(Image.new("RGB", (8, 4), "red"))
    page = render_html(wrong_report, (Example(64, 'What "is" it?', png),))
    sources = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
    assert page.count("src=") == len(sources) == 1
    assert Image.open(BytesIO(base64.b64decode(sources[0]))).size == (8, 4)
    assert 'alt="tokens kept at 64: What &quot;is&quot; it?"' in page


def test_a_picture_that_cannot_be_drawn_has_its_reason(report: Report) -> None:
    page = render_examples(report, (Example(64, "?", None, "7 visual tokens form no grid"),))
    assert "No picture: 7 visual tokens form no grid" in page
    assert "<img" not in page
