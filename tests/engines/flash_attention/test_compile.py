"""Compilation ahead of time, and the C++ source it writes."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.support.flash_attention import SCRATCH, argument_names
from toprl_flash_attention.compile import Image, compile_variant, cpp_source, main
from toprl_flash_attention.variants import KernelVariant, variants


def the(kernel, sm, head_dim, masked=False, form="", dtype="fp16") -> KernelVariant:
    key = (kernel, sm, dtype, head_dim, masked, form)
    (found,) = [v for v in variants() if (v.kernel, v.sm, v.dtype, v.head_dim, v.masked, v.form) == key]
    return found


def test_the_source_holds_every_byte():
    variant = the("merge_splits", 80, 64)
    image = Image("merge_splits", bytes(range(1, 20)), b"assembly", 2048, "ppi", 2)
    text = "\n".join(cpp_source((variant,), {variant.image: image}))
    for name, data in ((f"cubin_{variant.image}", image.cubin), (f"ptx_{variant.image}", image.ptx)):
        words = re.search(rf"{name}\[\] = {{(.*?)}};", text, re.DOTALL).group(1).split(",")
        stored = b"".join(int(word, 16).to_bytes(8, "little") for word in words)
        assert stored[: len(data)] == data
        assert set(stored[len(data) :]) == {0}
        assert len(stored) > len(data)  # assembly is a text that ends in a zero
    row = 'Kernel::merge_splits, 80, Dtype::fp16, 64, false, Form::none, 1, 1, 4, 2048, "ppi", 2, "merge_splits"'
    assert row in text


def test_a_missing_assembler_is_told_at_once(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--output", str(tmp_path), "--ptxas", "/nowhere/ptxas"])
    assert stopped.value.code == 2
    assert "/nowhere/ptxas is not a file" in capsys.readouterr().err


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """`compile_variant` in a process of its own, for Triton may interpret in this one, with a cache of its own."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton: pip install 'toprl-export[kernels]'")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield lambda *arguments: pool.submit(compile_variant, *arguments).result()


@pytest.mark.parametrize(
    ("variant", "target", "instruction"),
    [
        (the("attend_few", 80, 64, masked=True, form="few"), "sm_80", "mma.sync"),
        (the("attend", 90, 64, form="narrow", dtype="bf16"), "sm_90a", "wgmma.mma_async"),
    ],
)
def test_kernels_compile_without_a_gpu(compiled, variant, target, instruction):
    image = compiled(variant)
    assert image.cubin.startswith(b"\x7fELF")
    assert image.symbol == variant.kernel
    assert f".target {target}".encode() in image.ptx
    assert instruction.encode() in image.ptx
    assert image.scratch == SCRATCH
    assert len(image.arguments) == len(argument_names(variant.kernel))
    assert image.arguments.startswith("ppppppfiiiii")
    (declared,) = re.findall(r"\.entry [^(]*\((.*?)\)\s*\.reqntid (\d+)", image.ptx.decode(), re.DOTALL)
    kinds = {"u64": "p", "f32": "f", "u32": "i"}
    parameters = [kinds[kind] for kind in re.findall(r"\.param \.(\w+)", declared[0])]
    assert "".join(parameters) == image.arguments.replace("l", "p") + "p" * SCRATCH
    assert int(declared[1]) == 32 * variant.tile.warps


@pytest.mark.parametrize("sm", [80, 90])
def test_nvccs_assembler_makes_the_machine_code(compiled, sm):
    ptxas = shutil.which("ptxas", path=os.pathsep.join([os.environ["PATH"], "/usr/local/cuda/bin"]))
    if ptxas is None:
        pytest.skip("needs the ptxas of CUDA's compiler")
    said = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout
    image = compiled(the("attend", sm, 64, masked=True, form="narrow"), ptxas)
    assert re.search(r"release .*", said).group().encode() in image.cubin


def test_a_tile_too_large_for_the_gpu_is_refused(compiled):
    variant = the("attend_few", 80, 128, form="few")
    huge = replace(variant, tile=replace(variant.tile, stages=8))
    with pytest.raises(ValueError, match="choose a smaller tile"):
        compiled(huge)


def test_the_room_stands_alone():
    """Neither the core nor another room is imported by the kernel's package."""
    package = Path(__file__).parents[3] / "engines" / "flash_attention" / "toprl_flash_attention"
    for file in package.glob("*.py"):
        assert not re.search(r"(import|from) toprl_(export|engines|trainers)", file.read_text())
