"""The compiled kernel's check: what it is handed, and when it is not built."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import torch

from ci.gpu.attention_cases import KINDS, problem_of_kind
from ci.gpu.checks import library
from ci.gpu.checks.library import build_library, check_library, library_attention
from ci.gpu.context import Context, NotRun
from toprl_flash_attention.library import Params, contiguous_params


class FakeLibrary:
    """Remembers the call that it was given."""

    params: Params

    def workspace_size(self, params: Params) -> int:
        return 64 if params.mask else 0

    def forward(self, params: Params, stream: int) -> None:
        self.params = params
        assert stream == 7


def context(folder: Path, device: str) -> Context:
    return Context(device, True, time.monotonic() + 60, folder / "cases.jsonl", folder)


@pytest.mark.parametrize("kind", ["strided", "padding mask", "full mask", "one query"])
def test_the_library_is_given_addresses_strides_and_a_workspace(kind, fake_cuda):
    made, built = problem_of_kind(kind, 64, torch.bfloat16, "cpu", 12, KINDS.index(kind)), FakeLibrary()
    answer = library_attention(built, contiguous_params)(made)
    given = built.params
    assert (answer.shape, answer.dtype) == (made.query.shape, made.query.dtype)
    assert (given.query, given.key, given.value) == tuple(x.data_ptr() for x in (made.query, made.key, made.value))
    assert tuple(given.query_strides) == made.query.stride()[:3]
    assert tuple(given.out_strides) == answer.stride()[:3]
    assert bool(given.mask) == bool(given.workspace) == (made.mask is not None)
    assert (given.dtype, given.q_len, given.k_len) == (1, made.query.shape[2], made.key.shape[2])


@pytest.mark.parametrize(("code", "error"), [(2, NotRun), (1, subprocess.CalledProcessError)])
def test_what_cannot_be_built_is_not_run_and_what_fails_to_is_a_failure(tmp_path, monkeypatch, code, error):
    script = tmp_path / "build.sh"
    script.write_text(f"echo 'error: cmake is not installed' >&2; exit {code}")
    monkeypatch.setattr(library, "BUILD", script)
    with pytest.raises(error, match="cmake" if code == 2 else "exit status 1"):
        build_library(context(tmp_path, "cuda"))


def test_without_a_gpu_nothing_is_built(tmp_path):
    with pytest.raises(NotRun, match="not run on a GPU"):
        check_library(context(tmp_path, "cpu"))
