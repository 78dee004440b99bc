"""Compile the kernels ahead of time into a C++ source: python -m toprl_flash_attention.compile --output DIR

Needs Triton, no GPU, no torch and no CUDA toolkit. Writes DIR/kernels.cpp: machine code (cubin) and assembly (PTX, for
newer devices and older drivers) of every kernel for sm_80 and sm_90, and the table that src/variants.h declares.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from toprl_flash_attention.tiles import TILES
from toprl_flash_attention.variants import ALIGNMENT, KernelVariant, argument_kind, is_aligned, variants

PTX_VERSION = 80
"""The oldest that has all the instructions: drivers from CUDA 12.0 on can compile it."""
SHARED_LIMIT = {80: 99 * 1024, 90: 227 * 1024}
"""Bytes of shared memory a program may use; sm_86 and sm_89 have less than sm_80 and run its code."""
KERNELS_PER_PROCESS = 8
_TYPES = {"float": "fp32", "int32": "i32", "int64": "i64"}
_CODES = {"pointer": "p", "float": "f", "int32": "i", "int64": "l"}


@dataclass(frozen=True)
class Image:
    """A compiled kernel.

    Attributes:
        symbol: its name within the code.
        cubin: machine code.
        ptx: assembly, for a driver to compile.
        shared: bytes of shared memory.
        arguments: a letter per argument: pointer, float, int (32 bits), long (64).
        scratch: further pointer arguments that the compiler added; null is passed.
    """

    symbol: str
    cubin: bytes
    ptx: bytes
    shared: int
    arguments: str
    scratch: int


def compile_variant(variant: KernelVariant, ptxas: str | None = None) -> Image:
    """Compile one kernel; ``ptxas`` is the assembler to use in place of Triton's own.

    Raises:
        ValueError: it needs more shared memory than the devices have, or scratch memory, for which null is passed.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from toprl_flash_attention import triton_kernels

    triton.knobs.compilation.disable_line_info = True
    if ptxas is not None:
        triton.knobs.nvidia.ptxas = triton.knobs.nvidia.ptxas_blackwell = ptxas
    kernel = getattr(triton_kernels, variant.kernel)
    source = ASTSource(kernel, *_signature(variant, kernel.arg_names))
    options = {
        "num_warps": variant.tile.warps, "num_stages": variant.tile.stages,
        "ptx_version": PTX_VERSION, "enable_fp_fusion": True,
    }  # fmt: skip
    compiled = triton.compile(source, target=GPUTarget("cuda", variant.sm, 32), options=options)
    if compiled.metadata.shared > SHARED_LIMIT[variant.sm]:
        raise ValueError(
            f"{variant.image} needs {compiled.metadata.shared} bytes of shared memory, "
            f"sm_{variant.sm} code may use {SHARED_LIMIT[variant.sm]}: choose a smaller tile"
        )
    if compiled.metadata.global_scratch_size or compiled.metadata.profile_scratch_size:
        raise ValueError(f"{variant.image} needs scratch memory in the device, and the launches pass none")
    ptx = compiled.asm["ptx"]
    arguments = argument_letters([name for name in kernel.arg_names if name not in variant.constants])
    return Image(
        symbol=compiled.metadata.name,
        cubin=compiled.asm["cubin"],
        ptx=ptx.encode(),
        shared=compiled.metadata.shared,
        arguments=arguments,
        scratch=_parameters(ptx) - len(arguments),
    )


def argument_letters(names: list[str]) -> str:
    """A letter for each argument of a kernel: `Image.arguments`."""
    return "".join(_CODES[argument_kind(name)] for name in names)


def _signature(
    variant: KernelVariant, names: list[str]
) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], Any]]:
    """Types, constants and alignments of a kernel's arguments, as Triton wants them."""
    types = {}
    for name in names:
        kind = argument_kind(name)
        element = {"mask": "i8", "marks": "i8", "parts": "fp32"}.get(name, variant.dtype)
        types[name] = "constexpr" if name in variant.constants else _TYPES.get(kind, f"*{element}")
    aligned = {(i,): [["tt.divisibility", ALIGNMENT]] for i, name in enumerate(names) if is_aligned(name)}
    return types, dict(variant.constants), aligned


def _parameters(ptx: str) -> int:
    """How many parameters the entry of the assembly has."""
    entry = re.search(r"\.entry [^(]*\((.*?)\)", ptx, re.DOTALL)
    if entry is None:
        raise ValueError("the assembly has no entry")
    return entry.group(1).count(".param")


def compile_all(distinct: dict[str, KernelVariant], jobs: int, ptxas: str | None) -> dict[str, Image]:
    """Compile kernels, ``jobs`` at a time, and say so."""
    images: dict[str, Image] = {}
    waiting = list(distinct)
    while waiting:
        # Fresh processes now and then: Triton 3.9 was seen to crash after some forty kernels in one.
        batch, waiting = waiting[: KERNELS_PER_PROCESS * jobs], waiting[KERNELS_PER_PROCESS * jobs :]
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            compiled = pool.map(partial(compile_variant, ptxas=ptxas), [distinct[name] for name in batch])
            for name, image in zip(batch, compiled, strict=True):
                images[name] = image
                print(f"[{len(images)}/{len(distinct)}] {name}: {len(image.cubin)} bytes", flush=True)
    return images


def cpp_source(found: tuple[KernelVariant, ...], images: dict[str, Image]) -> Iterator[str]:
    """The lines of kernels.cpp."""
    yield "// Written by toprl_flash_attention.compile."
    yield '#include "variants.h"'
    yield "namespace toprl {"
    for name, image in images.items():
        yield _array(f"cubin_{name}", image.cubin)
        yield _array(f"ptx_{name}", image.ptx)
    yield "const Variant kVariants[] = {"
    for variant in found:
        name, image = variant.image, images[variant.image]
        yield (
            f"    {{Kernel::{variant.kernel}, {variant.sm}, {_enum('Dtype', variant.dtype)}, {variant.head_dim}, "
            f"{str(variant.masked).lower()}, {_enum('Form', variant.form)}, {variant.tile.block_q}, "
            f'{variant.tile.block_k}, {variant.tile.warps}, {image.shared}, "{image.arguments}", {image.scratch}, '
            f'"{image.symbol}", cubin_{name}, ptx_{name}}},'
        )
    yield "};"
    yield f"const int kVariantCount = {len(found)};"
    yield "}  // namespace toprl"


def _enum(kind: str, name: str) -> str:
    return f"{kind}::{name or 'none'}"


def _array(name: str, data: bytes) -> str:
    """Bytes as 64-bit words of a little-endian machine, with a zero byte behind them."""
    padded = data + bytes(8 - len(data) % 8)
    words = [f"0x{int.from_bytes(padded[i : i + 8], 'little'):x}" for i in range(0, len(padded), 8)]
    lines = [",".join(words[i : i + 16]) for i in range(0, len(words), 16)]
    return f"static const std::uint64_t {name}[] = {{\n" + ",\n".join(lines) + "};"


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m toprl_flash_attention.compile", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where kernels.cpp is written")
    parser.add_argument("--ptxas", metavar="FILE", help="assembler to use, such as nvcc's (default: Triton's own)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="kernels compiled at a time (default: 1)")
    options = parser.parse_args(arguments)
    if options.ptxas is not None and not Path(options.ptxas).is_file():
        parser.error(f"--ptxas {options.ptxas} is not a file")  # Triton would quietly use its own
    found = variants(tuple(TILES))
    images = compile_all({variant.image: variant for variant in found}, options.jobs, options.ptxas)
    options.output.mkdir(parents=True, exist_ok=True)
    partial_file = options.output / "kernels.cpp.partial"
    partial_file.write_text("\n".join(cpp_source(found, images)) + "\n", encoding="utf-8")
    partial_file.replace(options.output / "kernels.cpp")


if __name__ == "__main__":
    main()
