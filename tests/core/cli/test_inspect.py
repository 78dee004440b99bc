"""inspect: tells a bundle, an agent, a plan and a report apart, and says what each holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.fake_engine import made_up_bundle, made_up_manifest, stamp
from toprl_export.bundle import load_bundle
from toprl_export.cli.main import main
from toprl_export.files import write_json_atomic


def inspected(capsys: pytest.CaptureFixture[str], path: Path) -> tuple[str, dict]:
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert main(["inspect", str(path), "--json"]) == 0
    return text, json.loads(capsys.readouterr().out)


def test_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made_up_bundle(tmp_path / "bundle")
    text, content = inspected(capsys, tmp_path / "bundle")
    assert "validated   not yet" in text and "fake, fp32, opset 23" in text
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert all(file.path in text and file.sha256[:12] in text for file in manifest.files)
    assert all(" → ".join(map(str, schedule.keep_counts)) in text for schedule in manifest.plan.schedules)
    assert content == json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    stamp(tmp_path / "bundle", "mini-exist", "e" * 64, "failed")
    stamp(tmp_path / "bundle", "mini-count", "f" * 64, "passed")
    text, _ = inspected(capsys, tmp_path / "bundle" / "manifest.json")
    assert "validated   mini-exist failed, report eeeeeeeeeeee…" in text
    assert "validated   mini-count passed, report ffffffffffff…" in text


def test_a_bundle_of_a_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made_up_bundle(tmp_path / "bundle", "fastv-p")
    text, content = inspected(capsys, tmp_path / "bundle")
    assert "baseline    fastv-p, for every task" in text and "fingerprint\n" not in text
    assert (content["baseline"], content["agents"]) == ("fastv-p", [])


def test_a_damaged_bundle_is_not_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made_up_bundle(tmp_path / "bundle")
    (tmp_path / "bundle" / "weights.bin").unlink()
    assert main(["inspect", str(tmp_path / "bundle")]) == 2
    assert "weights.bin is listed in the manifest but missing" in capsys.readouterr().err


def test_an_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from tests.support.agents import save_tiny_agent
    from tests.support.tiny_llava import tiny_adapter

    directory = save_tiny_agent(tmp_path / "agent", tiny_adapter())
    text, content = inspected(capsys, directory)
    assert "mini-exist" in text and "3 updates, 24 rollouts" in text and "decoder:0 (actor)" in text
    assert content == json.loads((directory / "agent.json").read_text())


def test_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plan = made_up_manifest().plan
    write_json_atomic(tmp_path / "my-plan.json", plan.to_json())
    text, content = inspected(capsys, tmp_path / "my-plan.json")
    assert "16 visual tokens, 4 decoder layers" in text and "50.0%" in text
    assert content == plan.to_json()


def test_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from tests.core.validation.conftest import made_up_report
    from toprl_export.validation.gates import GateLimits
    from toprl_export.validation.report import write_report

    report = made_up_report(GateLimits())
    write_report(tmp_path / "report.json", report)
    text, content = inspected(capsys, tmp_path)
    assert content == json.loads((tmp_path / "report.json").read_text())
    assert f"verdict     {report.verdict}" in text and all(gate.sentence in text for gate in report.gates)
    rows = [line.split() for line in text.splitlines() if " of 576 " in line]
    assert [row[:5] for row in rows] == [
        ["192", "of", "576", "98.2%", "97.4%"],
        ["64", "of", "576", "98.2%", "93.1%"],
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "does not exist"),
        ("hello", "cannot be read as JSON"),
        ("[]", "has the format None, expected one of toprl-export/bundle, toprl-export/agent"),
        ('{"format": ["a"]}', "has the format ['a']"),
        ('{"format": "toprl-export/doctor"}', "has the format 'toprl-export/doctor'"),
        ('{"format": "toprl-export/plan", "version": 9}', "has version 9"),
        ('{"format": "toprl-export/report", "version": 9}', "has version 9"),
    ],
)
def test_what_cannot_be_inspected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, expected: str
):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_text(content)
    assert main(["inspect", str(path)]) == 2
    printed = capsys.readouterr().err
    assert expected in printed and str(path) in printed and printed.count("\n") == 1


def test_a_directory_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(tmp_path)]) == 2
    assert "holds none of manifest.json, agent.json, report.json" in capsys.readouterr().err
