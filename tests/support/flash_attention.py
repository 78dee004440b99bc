"""The FlashAttention core without Triton and without a GPU: stand-ins for the kernels and for the CUDA driver."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toprl_flash_attention.compile import Image, argument_letters, cpp_source
from toprl_flash_attention.library import CoreError, CoreLibrary, Params
from toprl_flash_attention.variants import KERNELS, KernelVariant, variants

ROOT = Path(__file__).parents[2]
ROOM = ROOT / "engines" / "flash_attention"
SCRATCH = 2
"""Arguments that Triton adds to each kernel."""
FLAGS = ("-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class Launch:
    """What the driver was given.

    Attributes:
        kind: "cubin" or "ptx".
        name: of the code, `KernelVariant.image`.
        grid: programs.
        threads: per program.
        shared: bytes per program.
        stream: its address.
        arguments: by the kernel's names for them.
        scratch: what was passed behind them.
    """

    kind: str
    name: str
    grid: int
    threads: int
    shared: int
    stream: int
    arguments: dict[str, Any]
    scratch: list[int]


def argument_names(kernel: str) -> list[str]:
    """Names of the arguments that a launch of the kernel passes, read from its source."""
    source = (ROOM / "toprl_flash_attention" / "triton_kernels.py").read_text(encoding="utf-8")
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    return [a.arg for a in functions[kernel].args.args if not a.arg.isupper()]


def kernel_of(image: str) -> str:
    """The kernel whose code is called ``image``."""
    return max((kernel for kernel in KERNELS if image.startswith(kernel)), key=len)


def stand_in_image(variant: KernelVariant) -> Image:
    """Code that the stand-in for the driver understands: the letters of its arguments."""
    letters = argument_letters(argument_names(variant.kernel))
    code = f"{variant.image} {letters}".encode()
    return Image(f"symbol_{variant.image}", b"cubin " + code, b"ptx " + code, 1000 * variant.sm, letters, SCRATCH)


def write_kernels(path: Path) -> None:
    """A kernels.cpp of stand-ins."""
    found = variants()
    path.write_text("\n".join(cpp_source(found, {v.image: stand_in_image(v) for v in found})), encoding="utf-8")


def compiler() -> str:
    """The C++ compiler; skips the test where there is none."""
    import pytest  # here, so that the processes that make calls start without it

    found = shutil.which("g++")
    if found is None:
        pytest.skip("needs g++")
    return found


def build_core(directory: Path) -> Path:
    """Build the core library with stand-ins for the kernels, and a stand-in for libcuda.so.1 under driver/."""
    write_kernels(directory / "kernels.cpp")
    library = directory / "libtoprl_flash_attention.so"
    sources = [*sorted((ROOM / "src").glob("*.cpp")), directory / "kernels.cpp"]
    include = [f"-I{ROOM / 'include'}", f"-I{ROOM / 'src'}"]
    subprocess.run([compiler(), *FLAGS, *include, *map(str, sources), "-o", str(library), "-ldl"], check=True)
    driver = directory / "driver" / "libcuda.so.1"
    driver.parent.mkdir()
    source = Path(__file__).with_name("stand_in_driver.cpp")
    subprocess.run([compiler(), *FLAGS, str(source), "-o", str(driver)], check=True)
    return library


def call_core(
    library: Path, calls: list[Params], *, with_driver: bool = True, **driver: str
) -> list[tuple[int, list[Launch]]]:
    """Make calls in a process of its own: the status of each, and what the driver was given for it.

    ``driver`` sets what the stand-in pretends: sm="89", refuse="cubin", context="none", shared="1000", launch="1".
    """
    log = library.parent / "launches.jsonl"
    log.write_text("")
    settings = {f"STAND_IN_{name.upper()}": value for name, value in driver.items()}
    environment = {**os.environ, **settings, "STAND_IN_LOG": str(log)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOM)])
    if with_driver:
        environment["LD_LIBRARY_PATH"] = str(library.parent / "driver")
    code = "from tests.support.flash_attention import answer_calls; answer_calls()"
    done = subprocess.run(
        [sys.executable, "-c", code, str(library)], input=json.dumps([bytes(call).hex() for call in calls]),
        env=environment, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    launches = [_launch(json.loads(line)) for line in log.read_text().splitlines()]
    answers, begin = [], 0
    for status, end in json.loads(done.stdout):
        answers.append((status, launches[begin:end]))
        begin = end
    return answers


def _launch(line: dict[str, Any]) -> Launch:
    assert line["symbol"] == f"symbol_{line['name']}"
    names = argument_names(kernel_of(line["name"]))
    values = line["arguments"]
    arguments = dict(zip(names, values[: len(names)], strict=True))
    fields = {name: line[name] for name in ("kind", "name", "grid", "threads", "shared", "stream")}
    return Launch(**fields, arguments=arguments, scratch=values[len(names) :])


def answer_calls() -> None:
    """The other process: call the library named on the command line, print each status and the launches so far."""
    core, log = CoreLibrary(Path(sys.argv[1])), Path(os.environ["STAND_IN_LOG"])
    answers = []
    for text in json.load(sys.stdin):
        params = Params.from_buffer_copy(bytes.fromhex(text))
        status = 0
        try:
            core.forward(params, stream=5)
        except CoreError as error:
            status = error.status
        answers.append((status, len(log.read_text().splitlines())))
    print(json.dumps(answers))
