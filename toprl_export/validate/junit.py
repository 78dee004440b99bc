"""The gates as JUnit XML, which CI systems show."""

from __future__ import annotations

from xml.etree import ElementTree

from toprl_export.validate.report import Report


def junit_xml(report: Report) -> str:
    """One test case per gate; a gate that was not met is a failure."""
    failures = sum(not gate.passed for gate in report.gates)
    counts = {"tests": str(len(report.gates)), "failures": str(failures), "errors": "0"}
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": f"toprl-export validate {report.task}", **counts})
    for gate in report.gates:
        classname = f"{report.task}.kept-{gate.budget_kept}"
        case = ElementTree.SubElement(suite, "testcase", {"classname": classname, "name": gate.name})
        if not gate.passed:
            ElementTree.SubElement(case, "failure", {"message": gate.sentence})
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"
