"""Peak memory as the operating system tells it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from toprl_export.validate.memory import peak_memory

SIZE = 64 * 2**20


def in_fresh_process(script: str) -> list[int]:
    command = [sys.executable, "-c", f"from toprl_export.validate.memory import resident_peak\n{script}"]
    return [int(word) for word in subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()]


def test_the_peak_grows_by_what_is_touched_and_stays():
    before, during, after = in_fresh_process(
        f"print(resident_peak())\nblock = bytearray(b'x') * {SIZE}\nprint(resident_peak())\n"
        "del block\nprint(resident_peak())"
    )
    assert SIZE <= during - before < 1.2 * SIZE
    assert after > during - SIZE / 10  # the kernel counts pages in batches


def test_a_child_does_not_inherit_the_peak():
    block = np.ones(2 * SIZE, np.uint8)
    assert in_fresh_process("print(resident_peak())")[0] < block.nbytes


def test_a_failed_process_is_told(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)memory of engine failed.*expected a bundle"):
        peak_memory(tmp_path, "engine", (1,), "a question", 1)
