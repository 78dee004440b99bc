"""report.json: its contract, the round trip, and files that are none. junit.xml: a test case per gate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.core.validation.conftest import budget_report
from toprl_export.cli.validate import describe
from toprl_export.errors import UserError
from toprl_export.fields import to_json
from toprl_export.validation.html import render_html
from toprl_export.validation.report import Report, junit_xml, read_report, write_report


def test_round_trip(tmp_path: Path, report: Report):
    incomplete = replace(
        report.budgets[1],
        retention=None,
        retention_ci95=None,
        peak_memory_bytes=None,
        throughput=(),
        parity=replace(report.budgets[1].parity, logit_error_free=None),
    )
    report = replace(report, budgets=(report.budgets[0], incomplete))
    write_report(tmp_path / "report.json", report)
    assert read_report(tmp_path / "report.json") == report


def test_shape_is_the_contract(tmp_path: Path, report: Report):
    """What design.md §8 promises to tools, spelled out by hand."""
    write_report(tmp_path / "report.json", report)
    payload = json.loads((tmp_path / "report.json").read_text())
    assert (payload["format"], payload["version"], payload["verdict"]) == ("toprl-export/report", 2, "passed")
    assert payload.keys() >= {"gates", "device", "seed", "command", "budgets"}
    assert payload["gates"][0].keys() >= {"name", "budget_kept", "measured", "limit", "passed"}
    budget = payload["budgets"][0]
    assert (budget["budget_kept"], budget["visual_tokens"]) == (192, 576)
    for name in ("reference", "pruned_reference", "engine", "random"):
        assert budget["accuracy"][name].keys() == {"value", "n", "ci95", "f1"}
    assert isinstance(budget["retention"], float)
    assert len(budget["parity"]["kept_overlap_per_stage"]) == 3
    assert budget["parity"].keys() >= {"logit_error_free", "logit_error_forced", "greedy_agreement"}
    for name in ("reference", "engine_unpruned", "engine"):
        assert budget["latency_ms"][name].keys() == {"vision", "prefill", "decode_per_token", "total"}
    assert budget["speedup"].keys() >= {
        "prefill_vs_reference",
        "prefill_vs_engine_unpruned",
        "total_vs_reference",
        "total_vs_engine_unpruned",
    }
    assert budget["flops"].keys() >= {"formula", "graph", "graph_unpruned"}
    assert budget.keys() >= {"throughput", "peak_memory_bytes"}


def test_f1_is_kept_and_shown_where_the_task_has_one(tmp_path: Path, report: Report):
    detecting = replace(report, budgets=(budget_report(192, 0.974, 0.871, f1=True),))
    write_report(tmp_path / "report.json", detecting)
    assert read_report(tmp_path / "report.json") == detecting
    assert "F1 of the engine 87.4 at 192 kept (reference 88.2)" in describe(detecting)
    assert "F1 87.4%" in render_html(detecting) and "F1 77.1%" in render_html(detecting)
    assert "F1" not in describe(report) and "F1" not in render_html(report)


def damage(payload: dict, change: str) -> None:
    budget = payload["budgets"][0]
    if change == "lacking":
        del budget["retention"]
    elif change == "unknown":
        budget["unexpected"] = 1
    elif change == "mistyped":
        budget["speedup"]["total_vs_reference"] = "fast"
    elif change == "verdict":
        payload["verdict"] = "maybe"
    elif change == "interval":
        budget["accuracy"]["engine"]["ci95"] = [0.1]
    elif change == "boolean":
        budget["budget_kept"] = True
    elif change == "version":
        payload["version"] = 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lacking", r"report\.json lacks budgets\[0\]\.retention: validate again"),
        ("unknown", r"has the unknown field budgets\[0\]\.unexpected"),
        ("mistyped", r"budgets\[0\]\.speedup\.total_vs_reference is 'fast', expected a number"),
        ("verdict", "verdict is 'maybe', expected 'passed' or 'failed'"),
        ("interval", r"lacks budgets\[0\]\.accuracy\.engine\.ci95\[1\]"),
        ("boolean", "budget_kept is True, expected a whole number"),
        ("version", "version 3"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, report: Report, change: str, message: str):
    payload = to_json(report)
    damage(payload, change)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(payload))
    with pytest.raises(UserError, match=message):
        read_report(path)


def test_gates_become_cases(report: Report):
    suite = ElementTree.fromstring(junit_xml(report)).find("testsuite")
    assert suite is not None
    assert len(suite.findall("testcase")) == len(report.gates) == int(suite.attrib["tests"]) == 9
    assert suite.attrib["failures"] == "0"
    assert suite.find("testcase/failure") is None


def test_failures_are_counted_and_told(failed_report: Report):
    suites = ElementTree.fromstring(junit_xml(failed_report))
    failed = [case for case in suites.iter("testcase") if case.find("failure") is not None]
    assert suites.attrib["failures"] == "1"
    assert [case.attrib["classname"] for case in failed] == ["mini-colour.kept-64"]
    assert "0.5, wanted <= 0.001" in failed[0].find("failure").attrib["message"]  # type: ignore[union-attr]  # found above


def test_names_are_escaped(report: Report):
    odd = replace(report.gates[0], name='<"&>')
    read = ElementTree.fromstring(junit_xml(replace(report, gates=(odd,))))
    assert read.find("testsuite/testcase").attrib["name"] == '<"&> >= 100'  # type: ignore[union-attr]  # it has one case
