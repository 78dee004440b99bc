"""What the command line says of the engine trt: its flags, and bundles, dry runs and build reports in words."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from toprl_engines.trt import compiled as compiled_module
from toprl_engines.trt.build_report import BuildReport, GraphBuild, LayerEntry, write_build_report
from toprl_engines.trt.compiled import Compiled, GpuEntry
from toprl_engines.trt.flags import TensorRTCommandLine
from toprl_engines.trt.options import TensorRTOptions
from toprl_export.errors import UserError

ENGINE = TensorRTCommandLine()
ADA = GpuEntry("RTX 4090", "8.9", "580.95")


def parsed(*words: str) -> TensorRTOptions | None:
    """What the options become of a command line."""
    command = click.Command("build", params=list(ENGINE.build_options))
    with command.make_context("build", list(words)) as context:
        return ENGINE.options(context.params)


def test_without_flags_there_are_no_options():
    assert parsed() is None


def test_every_flag_reaches_its_option():
    words = (
        "--attention plugin --plugin-library a.so --max-batch 8 --max-text 64 --max-new-tokens 32 --workspace-gib 1.5 "
        "--weight-stripped --refittable --version-compatible --tensorrt-binding tensorrt_rtx --target-sm 8.9,12.0"
    )
    assert parsed(*words.split()) == TensorRTOptions(
        attention="plugin",
        plugin_library=Path("a.so"),
        max_batch=8,
        max_text=64,
        max_new_tokens=32,
        workspace_gib=1.5,
        weight_stripped=True,
        refittable=True,
        version_compatible=True,
        binding="tensorrt_rtx",
        target_sms=("8.9", "12.0"),
    )
    assert parsed("--hardware-compatible") == TensorRTOptions(hardware_compatible=True)


def test_flags_are_those_that_messages_name():
    """`TensorRTOptions.given_flags` writes them by itself."""
    flags = {flag for option in ENGINE.build_options for flag in option.opts}
    given = TensorRTOptions(
        attention="plugin",
        plugin_library=Path("a.so"),
        max_batch=8,
        max_text=64,
        max_new_tokens=32,
        workspace_gib=1.5,
        weight_stripped=True,
        refittable=True,
        version_compatible=True,
        binding="tensorrt_rtx",
        target_sms=("8.9",),
    )
    assert {*given.given_flags, *TensorRTOptions(hardware_compatible=True).given_flags} == flags


def test_values_of_a_configuration_file_are_taken_as_they_are():
    """YAML has lists, numbers and booleans; a switch that is false is not given."""
    values = {"target_sm": ("8.9", "12.0"), "refittable": False, "max_batch": 2}
    assert ENGINE.options(values) == TensorRTOptions(target_sms=("8.9", "12.0"), max_batch=2)
    (option,) = (option for option in ENGINE.build_options if option.name == "target_sm")
    assert option.type.convert([8.9, 12.0], option, None) == ("8.9", "12.0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--attention", "flash"), "'flash' is not one of 'plugin', 'native'"),
        (("--max-text", "0"), "0 is not in the range x>=1"),
        (("--tensorrt-binding", "trt"), "'trt' is not one of 'tensorrt', 'tensorrt_rtx'"),
    ],
)
def test_impossible_words_are_usage_errors(words, message):
    with pytest.raises(click.UsageError, match=re.escape(message)):
        parsed(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--workspace-gib", "-1"), "--workspace-gib is -1.0, expected a number above 0"),
        (("--target-sm", "8.9,90"), "--target-sm is '90', expected a compute capability such as 8.9"),
        (("--attention", "native", "--plugin-library", "a.so"), "--plugin-library is for --attention plugin"),
    ],
)
def test_impossible_options_are_one_line(words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parsed(*words)


def test_the_help_says_the_defaults():
    command = click.Command("build", params=list(ENGINE.build_options))
    printed = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    for text in ("questions at once (default: 4)", "(default: 128)", "(default: 256)", "--target-sm SM[,SM]"):
        assert text in printed


@pytest.mark.parametrize("gpu", [None, ADA])
def test_a_diagnosis(monkeypatch, gpu):
    real = metadata.version

    def version(name: str) -> str:
        if name.startswith("tensorrt_rtx") or name == "cuda-bindings":
            raise metadata.PackageNotFoundError(name)
        return "11.2.0" if name == "tensorrt" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(compiled_module, "find_gpu", lambda: gpu)
    found = ENGINE.diagnose()
    assert json.loads(json.dumps(found)) == found
    assert found["packages"] == {"tensorrt": "11.2.0"}
    first, *more = ENGINE.describe_diagnosis(found)
    assert first == "TensorRT: tensorrt 11.2.0"
    assert more == ([] if gpu is None else ["  on RTX 4090 (compute capability 8.9, driver 580.95)"])
    assert ENGINE.describe_diagnosis({"packages": {}, "gpu": None}) == ["TensorRT: not installed"]


@pytest.mark.parametrize(
    ("compiled", "expected"),
    [
        (
            Compiled(
                binding="tensorrt",
                binding_version="11.4.0",
                gpu=ADA,
                target_sms=("8.9",),
                attention="plugin",
                weight_stripped=True,
            ),
            [
                ("plans by", "tensorrt 11.4.0, weight-stripped"),
                ("plans on", "RTX 4090, driver 580.95"),
                ("plans for", "compute capability 8.9"),
                ("attention", "plugin"),
            ],
        ),
        (
            Compiled(binding="tensorrt_rtx", binding_version="1.7.1"),
            [
                ("plans by", "tensorrt_rtx 1.7.1, no special flags"),
                ("plans on", "a machine without a GPU"),
                ("plans for", "the GPUs that tensorrt_rtx builds for by itself"),
                ("attention", "native"),
            ],
        ),
    ],
)
def test_a_bundle_of_plans_says_what_they_are_compiled_for(compiled, expected):
    assert ENGINE.describe_details(compiled.to_details()) == expected


def test_a_dry_run_says_what_would_be_built():
    ranges = [
        {"name": "key_0", "values": False, "min": (1, 2), "opt": (1, 3), "max": (4, 9)},
        {"name": "value_0", "values": False, "min": (1, 2), "opt": (1, 3), "max": (4, 9)},
        {"name": "keep_counts", "values": True, "min": (3, 2), "opt": (8, 4), "max": (25, 25)},
    ]
    preview = {
        "binding": "tensorrt_rtx 1.7.1",
        "gpu": None,
        "attention": "native",
        "plugin_library": None,
        "flags": ["STRONGLY_TYPED"],
        "workspace_gib": 1.5,
        "profiles": {"decode": ranges},
    }
    assert ENGINE.describe_preview(preview) == [
        "  binding    tensorrt_rtx 1.7.1, no GPU here",
        "  attention  native",
        "  flags      STRONGLY_TYPED",
        "  workspace  1.5 GiB",
        "  decode",
        "    key_0 to value_0  1×2 … 1×3 … 4×9",
        "    keep_counts       3,2 … 8,4 … 25,25",
    ]


def test_a_build_report(tmp_path: Path):
    layers = (LayerEntry("a", "PLUGIN_V3", "attention plugin"), LayerEntry("t", "TOPK", "top-k"))
    kernels = (LayerEntry("a", "custom_layer", "attention plugin"), LayerEntry("k", "kgen", "other"))
    graph = GraphBuild((), layers, 9, kernels, 12.5, 3_000_000, None, ("something to know",))
    report = BuildReport("tensorrt_rtx 1.7", "fp16", "plugin", ("STRONGLY_TYPED",), 1 << 30, True, {"prefill": graph})
    write_build_report(tmp_path, report)
    content, text = ENGINE.readers["toprl-export/trt-build"](tmp_path / "build_report.json")
    assert "tensorrt_rtx 1.7" in text and "fp16, attention plugin" in text and "1074 MB" in text
    row = next(line for line in text.splitlines() if line.startswith("prefill "))
    cells = [cell.strip() for cell in row.split("  ") if cell.strip()]
    assert cells == ["prefill", "12.5 s", "3.00 MB", "-", "0 → 0", "1 → 1", "1 → 0", "0 → 0", "7 → 1"]
    assert "prefill: something to know" in text
    assert content == json.loads((tmp_path / "build_report.json").read_text())
