"""What doctor and inspect say of the project's own engines, in the engines' words."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from tests.support.fake_engine import made_up_bundle
from toprl_engines.trt.build_report import BuildReport, GraphBuild, LayerEntry, write_build_report
from toprl_engines.trt.compiled import Compiled, GpuEntry
from toprl_export.bundle import write_manifest
from toprl_export.cli.main import main


def inspected(capsys: pytest.CaptureFixture[str], path: Path) -> tuple[str, dict]:
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert main(["inspect", str(path), "--json"]) == 0
    return text, json.loads(capsys.readouterr().out)


def test_a_bundle_of_plans_says_what_they_are_compiled_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bundle = made_up_bundle(tmp_path / "bundle")
    assert "plans by" not in inspected(capsys, bundle.dir)[0]
    plans = Compiled(binding="tensorrt", binding_version="11.4.0", attention="plugin", weight_stripped=True)
    on_gpu = replace(plans, gpu=GpuEntry("RTX 4090", "8.9", "580.95"), target_sms=("8.9",))
    for compiled, lines in (
        (
            on_gpu,
            (
                "plans by    tensorrt 11.4.0, weight-stripped",
                "plans on    RTX 4090, driver 580.95",
                "plans for   compute capability 8.9",
                "attention   plugin",
            ),
        ),
        (plans, ("plans on    a machine without a GPU",)),
    ):
        engine = replace(bundle.manifest.engine, name="trt", details=compiled.to_details())
        write_manifest(bundle.dir, replace(bundle.manifest, engine=engine))
        text, _ = inspected(capsys, bundle.dir)
        assert set(lines) <= set(text.splitlines())


def test_a_build_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    layers = (LayerEntry("a", "PLUGIN_V3", "attention plugin"), LayerEntry("t", "TOPK", "top-k"))
    kernels = (LayerEntry("a", "custom_layer", "attention plugin"), LayerEntry("k", "kgen", "other"))
    graph = GraphBuild((), layers, 9, kernels, 12.5, 3_000_000, None, ("something to know",))
    report = BuildReport("tensorrt_rtx 1.7", "fp16", "plugin", ("STRONGLY_TYPED",), 1 << 30, True, {"prefill": graph})
    write_build_report(tmp_path, report)
    text, content = inspected(capsys, tmp_path / "build_report.json")
    assert "tensorrt_rtx 1.7" in text and "fp16, attention plugin" in text and "1074 MB" in text
    row = next(line for line in text.splitlines() if line.startswith("prefill "))
    cells = [cell.strip() for cell in row.split("  ") if cell.strip()]
    assert cells == ["prefill", "12.5 s", "3.00 MB", "-", "0 → 0", "1 → 1", "1 → 0", "0 → 0", "7 → 1"]
    assert "prefill: something to know" in text
    assert content == json.loads((tmp_path / "build_report.json").read_text())


@pytest.mark.parametrize(
    ("listed", "plugin", "names"),
    [
        (["CPUExecutionProvider"], False, ["cpu"]),
        (["AzureExecutionProvider", "CPUExecutionProvider"], True, ["cpu", "tensorrt-rtx"]),
        (
            ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
            False,
            ["cpu", "cuda", "tensorrt"],
        ),
    ],
)
def test_doctor_names_onnx_runtimes_providers_as_users_write_them(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    listed: list[str],
    plugin: bool,
    names: list[str],
):
    import onnxruntime

    from toprl_engines.ort import providers

    real = metadata.version
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(providers, "find_spec", lambda name: object() if plugin else None)
    monkeypatch.setattr(metadata, "version", lambda name: "11.2.0" if name == "tensorrt" else real(name))
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["diagnoses"]
    assert (found["onnx"]["providers"], found["onnx"]["provider_names"]) == (listed, names)
    assert found["trt"]["packages"]["tensorrt"] == "11.2.0"
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert f"--provider {', '.join(names)}\n" in printed and "TensorRT: tensorrt 11.2.0" in printed


def test_help_has_the_engines_options_and_providers(capsys: pytest.CaptureFixture[str]):
    assert main(["build", "--help"]) == 0
    printed = capsys.readouterr().out
    assert (
        printed.index("\nTensorRT (--engine trt):\n") < printed.index("  --target-sm SM[,SM]") < printed.index("Output")
    )
    for command in ("run", "validate"):
        assert main([command, "--help"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "where the engine runs; for onnx: cpu, cuda, tensorrt, tensorrt-rtx" in shown
        assert "what only one engine can be told, repeatable; for onnx: packing=cache|memory|off" in shown
