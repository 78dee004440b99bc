"""build.sh: the core, and against a TensorRT's headers the plugin."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.flash_attention import ROOM, compiler, write_kernels
from toprl_flash_attention.library import CoreLibrary

TENSORRT_ROOT = os.environ.get("TENSORRT_ROOT")


def build(room: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script of a copy of the room, whose build directory is the test's own."""
    return subprocess.run(["bash", str(room / "build.sh"), *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    compiler()
    copy = tmp_path_factory.mktemp("build") / "flash_attention"
    shutil.copytree(ROOM, copy, ignore=shutil.ignore_patterns("build", "__pycache__"))
    write_kernels(copy / "kernels.cpp")
    return copy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tensorrt-rot", "/opt"], "unknown argument --tensorrt-rot"),
        (["--output"], "--output needs a value"),
        (["--tensorrt-root", "/nowhere"], "--tensorrt-root /nowhere has no include/NvInferRuntime.h"),
        (["--kernels", "/nowhere.cpp"], "--kernels /nowhere.cpp is not a file"),
    ],
)
def test_mistakes_are_one_line(room, arguments, message):
    done = build(room, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_help_is_the_head_of_the_script(room):
    done = build(room, "--help")
    assert done.returncode == 0
    assert "--tensorrt-root DIR" in done.stdout
    assert "set -euo" not in done.stdout


def test_the_core_is_built_without_cuda_and_without_tensorrt(room, tmp_path):
    done = build(room, "--kernels", str(room / "kernels.cpp"), "--output", str(tmp_path), "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["libtoprl_flash_attention.so"]
    assert CoreLibrary(tmp_path / "libtoprl_flash_attention.so").supports(90)


def test_another_tensorrt_is_taken_the_next_time(room, tmp_path):
    for name in ("first", "second"):
        header = tmp_path / name / "include" / "NvInferRuntime.h"
        header.parent.mkdir(parents=True)
        header.touch()
        (header.parent / "cuda_runtime_api.h").touch()
        subprocess.run(
            ["cmake", "-S", room, "-B", tmp_path / "build", f"-DTOPRL_KERNELS={room / 'kernels.cpp'}",
             f"-DTENSORRT_ROOT={tmp_path / name}", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"],
            env={**os.environ, "CUDA_HOME": str(tmp_path / name)}, capture_output=True, check=True,
        )  # fmt: skip
    commands = json.loads((tmp_path / "build" / "compile_commands.json").read_text())
    (compiled,) = [entry["command"] for entry in commands if entry["file"].endswith("plugin/plugin.cpp")]
    assert str(tmp_path / "second") in compiled
    assert str(tmp_path / "first") not in compiled


@pytest.fixture(scope="module")
def plugin(room, tmp_path_factory):
    """The plugin's library, built against the headers that TENSORRT_ROOT names."""
    if TENSORRT_ROOT is None:
        pytest.skip("TENSORRT_ROOT names no TensorRT whose headers the plugin could be compiled with")
    output = tmp_path_factory.mktemp("plugin")
    kernels = str(room / "kernels.cpp")
    done = build(room, "--kernels", kernels, "--tensorrt-root", TENSORRT_ROOT, "--output", str(output))
    assert done.returncode == 0, done.stderr
    return output / "libtoprl_flash_attention_plugin.so"


def test_the_plugin_compiles_and_holds_the_core(plugin):
    library = ctypes.CDLL(str(plugin))
    assert library.getCreators and library.setLoggerFinder
    assert CoreLibrary(plugin).supports(80)


@pytest.mark.trt
def test_the_plugin_becomes_a_layer(plugin):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    from tests.support.attention_plans import plugin_plan

    assert plugin_plan(str(plugin)) == "built"
    assert plugin_plan(str(plugin), head_dim=80).startswith("exit 1")
