"""The repository's own tests that are marked ``gpu``."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from ci.gpu.context import Context, NotRun, WrongResult

ROOT = Path(__file__).parents[3]
MARK = "pytest.mark.gpu"


def check_tests(context: Context) -> None:
    """One case: how many passed, failed and were skipped."""
    context.measure("tests", "pytest -m gpu", lambda: run_tests(marked_files(ROOT / "tests"), context))


def marked_files(tests: Path) -> list[Path]:
    """The test files that mark anything ``gpu``: others need not even be importable here."""
    return sorted(path for path in tests.rglob("test_*.py") if MARK in path.read_text(encoding="utf-8"))


def run_tests(files: list[Path], context: Context) -> dict[str, float]:
    """Run them by pytest.

    Raises:
        NotRun: there is no pytest, no GPU, or no such test.
        WrongResult: a test failed.
    """
    if find_spec("pytest") is None:
        raise NotRun("pytest is not installed")
    if context.device != "cuda":
        raise NotRun("not run on a GPU")
    if not files:
        raise NotRun("no test is marked gpu")
    found = context.scratch / "junit.xml"
    # The project's own options name plugins that may be missing here; a file that needs one must not stop the others.
    options = ["-o", "addopts=", "--import-mode=importlib", "--continue-on-collection-errors", "-m", "gpu", "-rs"]
    command = [sys.executable, "-m", "pytest", "-q", *options, f"--junitxml={found}", *map(str, files)]
    subprocess.run(command, cwd=ROOT, timeout=max(1.0, context.seconds_left), check=False)
    return read_junit(found)


def read_junit(path: Path) -> dict[str, float]:
    """Counts of a JUnit file.

    Raises:
        NotRun: nothing ran.
        WrongResult: something failed.
    """
    if not path.exists():
        raise WrongResult("pytest left no report")
    suites = list(ElementTree.parse(path).iter("testsuite"))
    tests, failures, errors, skipped = (
        float(sum(int(suite.get(name, "0")) for suite in suites)) for name in ("tests", "failures", "errors", "skipped")
    )
    figures = {"passed": tests - failures - errors - skipped, "failures": failures + errors, "skipped": skipped}
    if failures + errors:
        raise WrongResult(f"{failures + errors:.0f} of {tests:.0f} tests failed", figures)
    if not figures["passed"]:
        raise NotRun(f"all {tests:.0f} tests were skipped")
    return figures
