"""The compiled kernel behind its C interface: built here, then held against PyTorch like the one called from torch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ci.gpu.attention_cases import LONGEST, Attend, Problem, problems
from ci.gpu.checks.kernel import compare_error, compare_speed, square_problems
from ci.gpu.context import Context, NotRun, one_line

BUILD = Path(__file__).parents[3] / "engines" / "flash_attention" / "build.sh"
LIBRARY = "libtoprl_flash_attention.so"
DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16"}


def check_library(context: Context) -> None:
    """Build, then the same problems as `ci.gpu.checks.kernel`."""
    if context.device != "cuda":
        raise NotRun("not run on a GPU")
    binding = import_module("toprl_flash_attention.library")
    if not context.measure("build", "kernels and C library", partial(build_library, context)):
        return
    attend = library_attention(binding.CoreLibrary(context.scratch / LIBRARY), binding.contiguous_params)
    for name, problem in problems(context.device, 200 if context.quick else LONGEST):
        context.measure("error", name, partial(compare_error, attend, problem))
    for name, problem in square_problems(context, 128, torch.bfloat16):
        context.measure("head dim 128", name, partial(compare_speed, attend, problem, context))


def build_library(context: Context) -> dict[str, float]:
    """Seconds and size of what ``build.sh`` makes.

    Raises:
        NotRun: it cannot be built here.
    """
    start = time.monotonic()
    command = ["bash", str(BUILD), "--output", str(context.scratch)]
    environment = {**os.environ, "PYTHON": sys.executable}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=context.seconds_left, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NotRun("building took too long") from error
    print(done.stdout, done.stderr)
    if done.returncode == 2:
        raise NotRun(one_line(done.stderr))
    done.check_returncode()
    return {"seconds": time.monotonic() - start, "mib": (context.scratch / LIBRARY).stat().st_size / 2**20}


def library_attention(library: Any, contiguous_params: Callable[..., Any]) -> Attend:
    """The library's ``forward`` on torch's tensors and its current stream."""

    def attend(problem: Problem) -> Tensor:
        query, key = problem.query, problem.key
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        mask = None if problem.mask is None else problem.mask.contiguous()
        params = contiguous_params(
            DTYPES[query.dtype],
            tuple(query.shape),
            tuple(key.shape),
            None if mask is None else tuple(mask.shape),
            scale=problem.scale,
            causal=problem.causal,
        )
        for name, tensor in (("query", query), ("key", key), ("value", problem.value), ("out", out)):
            setattr(params, name, tensor.data_ptr())
            strides = getattr(params, f"{name}_strides")
            strides[:] = tensor.stride()[:3]
        if mask is not None:
            params.mask = mask.data_ptr()
        workspace = torch.empty(library.workspace_size(params), dtype=torch.uint8, device=query.device)
        params.workspace, params.workspace_size = workspace.data_ptr() or None, workspace.numel()
        library.forward(params, torch.cuda.current_stream().cuda_stream)
        return out

    return attend
