"""report.json of ci/gpu.sh: what it holds comes back, and nothing else is taken for it."""

from __future__ import annotations

import json

import pytest

from ci.gpu.record import Case, CheckResult, GpuReport, Verdict, load_report, write_text
from toprl_export.errors import UserError
from toprl_export.fields import to_json


def report(**changes) -> GpuReport:
    cases = (
        Case("speed", "batch 1", figures={"ms": 3.5, "speedup": 2.25}),
        Case("speed", "batch 8", "not run", "too little device memory"),
        Case("error", "a | b", "failed", "3 times SDPA's error", {"of_sdpa_error": 3.0}),
    )
    fields = {
        "created": "2026-11-20T11:00:00+00:00",
        "command": "ci/gpu.sh out",
        "device": "cuda",
        "quick": False,
        "seconds": 12.5,
        "machine": {"gpu": "one", "torch": "2.11"},
        "checks": (CheckResult("kernel", "finished", "", 3.25, cases, "a log"), CheckResult("engines", "not run", "x")),
        "verdicts": (Verdict("faster", "≥ 2", "2.25", "reached"), Verdict("exact", "≤ 2", "none", "not run")),
    }
    return GpuReport(**(fields | changes))


def test_a_report_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "report.json"
    write_text(path, json.dumps(to_json(report())))
    assert load_report(path) == report()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "change",
    [
        {"format": "toprl-export/report"},
        {"version": 2},
        {"seconds": "long"},
        {"verdicts": [{"goal": "x"}]},
        {"verdicts": [{"goal": "x", "needed": "y", "found": "z", "outcome": "perhaps"}]},
    ],
)
def test_another_format_version_or_shape_is_refused(tmp_path, change):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(to_json(report()) | change))
    with pytest.raises(UserError):
        load_report(path)


def test_what_is_no_json_is_refused_in_one_line(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("{")
    with pytest.raises(UserError, match=r"report\.json is not valid JSON"):
        load_report(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": "failed", "why": ""},
        {"figures": {"ms": float("nan")}},
        {"figures": {"ms": float("inf")}},
    ],
)
def test_a_case_says_why_and_has_finite_figures(wrong):
    with pytest.raises(UserError):
        Case(**({"table": "speed", "name": "batch 1"} | wrong))


def test_what_could_not_run_breaks_nothing_but_what_failed_does():
    harmless = CheckResult("a", "finished", cases=(Case("t", "c", "not run", "no GPU"),))
    fine = report(checks=(harmless, CheckResult("b", "not run", "x")), verdicts=(Verdict("g", "n", "f", "not run"),))
    assert not fine.broken
    failed_case = CheckResult("a", "finished", cases=(Case("t", "c", "failed", "wrong"),))
    for checks in ((failed_case,), (CheckResult("a", "failed", "SIGKILL"),), (CheckResult("a", "out of time", "x"),)):
        assert report(checks=checks, verdicts=()).broken
    assert report(checks=(), verdicts=(Verdict("g", "n", "f", "not reached"),)).broken
