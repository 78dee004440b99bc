"""JUnit XML: a test case per gate."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

from toprl_export.validate.junit import junit_xml
from toprl_export.validate.report import Report


def test_gates_become_cases(report: Report):
    suite = ElementTree.fromstring(junit_xml(report)).find("testsuite")
    assert suite is not None
    assert len(suite.findall("testcase")) == len(report.gates) == int(suite.attrib["tests"]) == 6
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
    assert read.find("testsuite/testcase").attrib["name"] == '<"&>'  # type: ignore[union-attr]  # it has one case
