"""The report of ci/gpu.sh: report.json comes back as written and nothing else is taken for it; the page shows it."""

from __future__ import annotations

import json

import pytest

from ci.gpu.report import Case, CheckResult, GpuReport, Verdict, load_report, render, write_text
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


def test_the_page_holds_verdicts_figures_and_what_was_not_run():
    page = render(report())
    assert "| faster | ≥ 2 | 2.25 | reached |" in page
    assert "| batch 1 | 3.5 | 2.25 |" in page
    assert "- kernel, speed, batch 8: too little device memory" in page
    assert "- engines: the whole check: x" in page
    assert "**failed**: 3 times SDPA's error" in page
    assert "a \\| b" in page, "a bar inside a cell would begin another"


def test_every_row_of_a_table_has_as_many_cells_as_its_head():
    width = None
    for line in render(report()).splitlines():
        if not line.startswith("|"):
            width = None
            continue
        cells = line.replace("\\|", "").count("|")
        assert width in (None, cells), line
        width = cells


def test_a_run_without_a_gpu_says_so_in_its_title():
    assert render(report()).startswith("# GPU report\n")
    assert render(report(device="cpu", quick=True)).startswith("# GPU report: not run on a GPU\n")


def test_the_end_of_the_log_is_shown_where_something_failed_and_only_there():
    log = "\n".join(f"line {number}" for number in range(100))
    crashed = CheckResult("mini", "failed", "its process ended with SIGKILL", 1.0, (), log)
    page = render(report(checks=(crashed, CheckResult("fine", "finished", log="quiet"))))
    assert "line 99" in page
    assert "line 3\n" not in page
    assert "quiet" not in page


def test_cases_that_did_not_run_for_one_reason_share_a_line():
    cases = tuple(Case("speed", f"case {number}", "not run", "no triton") for number in range(9))
    page = render(report(checks=(CheckResult("kernel", "finished", cases=cases),)))
    assert "- kernel, speed, case 0; and 8 more: no triton" in page
    assert page.count("no triton") == 1


def test_a_check_that_measured_nothing_says_so():
    empty = CheckResult("mini", "finished", cases=(Case("agreement", "one", "not run", "no GPU"),))
    assert "Nothing was measured." in render(report(checks=(empty,)))
