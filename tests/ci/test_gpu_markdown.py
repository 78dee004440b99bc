"""The page of ci/gpu.sh."""

from __future__ import annotations

from ci.gpu.markdown import render
from ci.gpu.record import Case, CheckResult
from tests.ci.test_gpu_record import report


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
