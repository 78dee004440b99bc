"""report.html: one file with every figure in it, and nothing from elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from toprl_export.validation.charts import Series, column_chart, dot_chart, stacked_bars
from toprl_export.validation.html import render_html
from toprl_export.validation.report import Report

VOID = {"meta", "line", "circle", "rect"}


class Page(HTMLParser):
    """Collects text and attributes, and checks that elements nest."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.feed(content)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def test_nothing_comes_from_elsewhere(report: Report):
    page = render_html(report)
    assert not re.search(r"https?:|//\w|url\(|@import", page)
    assert not {name for name, _ in Page(page).attributes} & {"src", "href", "xlink:href"}
    assert "script" not in Page(page).tags


def test_the_figures_are_there(report: Report):
    text = " ".join(Page(render_html(report)).text)
    budget = report.budgets[1]
    for figure in (
        f"{budget.accuracy.engine.value:.1%}",
        f"{budget.accuracy.random.value * 100:.1f}",
        f"{budget.retention:.1%}",
        f"{budget.speedup.prefill_vs_engine_unpruned:.2f}×",
        f"{budget.latency_ms.engine.prefill:.2f}",
        "99.84%",  # overlap of the last stage
        "3.1e-06",  # logit error with forced selection
        "64 of 576",
        "231 MiB",
        report.command,
        "passed",
    ):
        assert figure in text, figure
    assert Page(render_html(report)).tags.count("svg") == 3


def test_a_failed_gate_is_named(failed_report: Report):
    page = render_html(failed_report)
    assert '<span class="verdict failed">failed</span>' in page
    assert page.count('<td class="failed">') == 2  # the gate, and the budget's row in the summary


def test_texts_are_escaped(report: Report):
    page = render_html(replace(report, command="validate '<script>alert(1)</script>'"))
    assert "<script" not in page
    assert "Some CPU &lt;2.1 GHz&gt;" in page


def test_a_report_with_gaps_is_rendered(report: Report):
    bare = replace(report.budgets[0], retention=None, retention_ci95=None, peak_memory_bytes=None, throughput=())
    bare = replace(bare, flops=replace(bare.flops, graph=None))
    text = " ".join(Page(render_html(replace(report, budgets=(bare,), gates=()))).text)
    assert "not measurable" in text
    assert "not counted" in text
    assert "None was set" in text


def heights(svg: str) -> list[float]:
    return [float(found) for found in re.findall(r'<rect[^>]*height="([\d.]+)" fill="#00f"', svg)]


def test_columns_are_as_high_as_their_values():
    svg = column_chart("t", ["a", "b"], [Series("one", "#00f", (2.0, 8.0))])
    low, high = [height for height in heights(svg) if height != 12]
    assert high / low == pytest.approx(4, rel=0.01)


def test_bars_are_as_long_as_their_values():
    svg = stacked_bars("t", ["a", "b"], [Series("one", "#00f", (10.0, 30.0)), Series("two", "#0f0", (5.0, 5.0))], "ms")
    widths = [float(found) for found in re.findall(r'width="([\d.]+)" height="21" fill="#00f"', svg)]
    assert widths[1] / widths[0] == pytest.approx(3, rel=0.01)
    assert "15.0 ms" in svg
    assert "35.0 ms" in svg


def test_dots_stand_where_their_values_are():
    svg = dot_chart("t", ["a"], [Series("one", "#00f", (0.9,), ((0.8, 1.0),)), Series("two", "#0f0", (0.7,))])
    upper, lower = (float(found) for found in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', svg))
    whisker = [
        float(found)
        for found in re.findall(r'<line x1="[\d.]+" x2="[\d.]+" y1="([\d.]+)" y2="([\d.]+)" stroke="#00f"', svg)[0]
    ]
    assert upper < lower
    assert sum(whisker) / 2 == pytest.approx(upper, abs=0.11)
