"""Our attention kernel against PyTorch's own, how exact and how fast it is: called from PyTorch, and as a C library.

First the problems it is tried on, with the exact answer and the error of an answer; then the checks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ci.gpu.context import Context, NotRun, WrongResult, one_line
from ci.gpu.decoders import load_kernel
from ci.gpu.timing import Prepare, capture, ratio, take_turns
from toprl_export.seeding import numpy_rng, torch_generator

Attend = Callable[["Problem"], Tensor]
"""Computes ``[b, heads, q, head_dim]``."""
KINDS = (
    "dense", "causal", "causal, keys before", "padding mask", "causal and padding", "full mask", "grouped heads",
    "one query", "one query, padding mask", "strided",
)  # fmt: skip
HEADS = 8
LONGEST = 1500
"""With ``HEADS`` heads, large and small enough that every form of our kernel is tried."""
PADDED = ("padding mask", "causal and padding", "one query, padding mask")
SMALLEST_ERROR = 1e-12
LARGEST_DIFFERENCE = 0.02
"""Relative, between two answers in 16 bits."""
SPEED_HEADS = 32
TOKENS = 8192
SPEED_LENGTHS = (1024, 2048, 4096, 8192)
CALLS = 8
BUILD = Path(__file__).parents[3] / "engines" / "flash_attention" / "build.sh"
LIBRARY = "libtoprl_flash_attention.so"
DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Problem:
    """One call of attention.

    Attributes:
        query: ``[b, heads, q, head_dim]``.
        key: ``[b, kv_heads, k, head_dim]``; ``kv_heads`` divides ``heads``.
        value: like ``key``.
        mask: ``bool``, true where a query may attend, broadcastable to ``[b, heads, q, k]``; None: everywhere.
        causal: the last query sees every key, the one before it all but the last, and so on (lower-right aligned).
        scale: factor of the dot products.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    causal: bool
    scale: float

    @property
    def flops(self) -> float:
        """Of both matrix products, a multiply-add counted as two; half of the square where it is causal."""
        batch, heads, queries, size = self.query.shape
        keys = self.key.shape[2]
        seen = queries * keys - (queries * (queries - 1) / 2 if self.causal else 0)
        return 4.0 * batch * heads * seen * size

    def allowed(self) -> Tensor | None:
        """Mask and causality as one mask, ``bool``; None: everywhere."""
        queries, keys = self.query.shape[2], self.key.shape[2]
        if not self.causal:
            return self.mask
        triangle = torch.ones(queries, keys, dtype=torch.bool, device=self.query.device).tril(keys - queries)
        return triangle if self.mask is None else triangle & self.mask


@dataclass(frozen=True)
class Sizes:
    """A problem's sizes."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int


def random_problem(sizes: Sizes, dtype: torch.dtype, device: str, seed: int) -> Problem:
    """Standard normal inputs, nothing masked."""
    generator = torch_generator(seed, "attention", device=device)

    def draw(heads: int, length: int) -> Tensor:
        shape = (sizes.batch, heads, length, sizes.head_dim)
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

    query, key = draw(sizes.heads, sizes.queries), draw(sizes.kv_heads, sizes.keys)
    return Problem(query, key, draw(sizes.kv_heads, sizes.keys), None, False, sizes.head_dim**-0.5)


def sizes_of_kind(kind: str, head_dim: int, dtype: torch.dtype, longest: int, seed: int) -> Sizes:
    """Random sizes for one of `KINDS`."""
    rng = numpy_rng(seed, kind, head_dim, str(dtype))
    queries, keys = (int(length) for length in sorted(rng.integers(longest // 3 + 1, longest + 1, 2)))
    if kind in ("causal", "strided"):
        queries = keys
    if kind.startswith("one query"):
        queries = 1
    kv_heads = int(rng.choice([1, 2, 4])) if kind == "grouped heads" else HEADS
    return Sizes(int(rng.integers(1, 4)), HEADS, kv_heads, queries, keys, head_dim)


def problem_of_kind(kind: str, head_dim: int, dtype: torch.dtype, device: str, longest: int, seed: int) -> Problem:
    """A problem of one of `KINDS` with random lengths up to ``longest``."""
    made = random_problem(sizes_of_kind(kind, head_dim, dtype, longest, seed), dtype, device, seed)
    if kind == "strided":
        made = replace(made, query=_strided(made.query), key=_strided(made.key), value=_strided(made.value))
    mask = _mask(kind, made, torch_generator(seed, kind, "mask", device=device))
    return replace(made, mask=mask, causal=kind.startswith("causal") or kind in ("strided", "grouped heads"))


def _mask(kind: str, made: Problem, generator: torch.Generator) -> Tensor | None:
    """Padding at the left of every row, or a random mask; every query sees at least one key."""
    batch, _, queries, _ = made.query.shape
    keys, device = made.key.shape[2], made.query.device
    if kind in PADDED:
        pads = torch.randint(1, keys // 2 + 1, (batch, 1), generator=generator, device=device)
        position = torch.arange(keys, device=device)
        real = position >= pads
        # The first key stays where causality hides the others from the first query.
        return (real | (position == 0) if kind.startswith("causal") else real)[:, None, None]  # [b, 1, 1, k]
    if kind == "full mask":
        drawn = torch.rand(batch, 1, queries, keys, generator=generator, device=device) < 0.5
        return drawn | torch.eye(queries, keys, dtype=torch.bool, device=device)
    return None


def _strided(x: Tensor) -> Tensor:
    """The same numbers in the layout of a projection's output: heads next to each other in every row."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def problems(device: str, longest: int) -> Iterator[tuple[str, Problem]]:
    """Every kind at both head sizes and types, by name."""
    for number, kind in enumerate(KINDS):
        for head_dim in (64, 128):
            for dtype in (torch.float16, torch.bfloat16):
                made = problem_of_kind(kind, head_dim, dtype, device, longest, seed=number)
                name = f"{kind}, {str(dtype).removeprefix('torch.')}, head dim {head_dim}, {_lengths(made)}"
                yield name, made


def _lengths(made: Problem) -> str:
    batch, heads, queries, _ = made.query.shape
    return f"{batch}×{heads}/{made.key.shape[1]} heads, {queries} queries, {made.key.shape[2]} keys"


def exact(problem: Problem) -> Tensor:
    """The answer in fp64, by the definition."""
    query, key, value = (x.double() for x in (problem.query, problem.key, problem.value))
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) * problem.scale  # [b, h, q, k]
    allowed = problem.allowed()
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(dim=-1) @ value


def sdpa(problem: Problem) -> Tensor:
    """PyTorch's own answer."""
    queries, keys = problem.query.shape[2], problem.key.shape[2]
    # Repeated: for grouped heads with a mask PyTorch has only a slow fp32 fallback, which is no yardstick.
    groups = problem.query.shape[1] // problem.key.shape[1]
    key, value = (x if groups == 1 else x.repeat_interleave(groups, dim=1) for x in (problem.key, problem.value))
    # PyTorch counts causality from the upper left, which is the same only where the problem is square.
    square = problem.causal and problem.mask is None and queries == keys
    return scaled_dot_product_attention(
        problem.query,
        key,
        value,
        attn_mask=None if square else problem.allowed(),
        is_causal=square,
        scale=problem.scale,
    )


def errors(answer: Tensor, truth: Tensor) -> tuple[float, float]:
    """Relative error of the whole, and the largest error of one number; infinite where the answer has NaN."""
    difference = answer.double() - truth
    if not bool(difference.isfinite().all()):
        return float("inf"), float("inf")
    return float(difference.norm() / truth.norm()), float(difference.abs().max())


def our_kernel() -> Attend:
    """`toprl_flash_attention.kernel.flash_attention` as an `Attend`.

    Raises:
        NotRun: there is no Triton.
    """
    function = load_kernel()

    def attend(problem: Problem) -> Tensor:
        query, key, value = problem.query, problem.key, problem.value
        if query.device.type == "cpu" and query.dtype == torch.bfloat16:
            raise NotRun("Triton's interpreter multiplies bfloat16 as if it were integers")
        return function(query, key, value, problem.mask, scale=problem.scale, causal=problem.causal)

    return attend


def check_error(context: Context) -> None:
    """Every kind of problem; then the control: causality counted from the wrong corner must be noticed."""
    attend = our_kernel()
    longest = 48 if context.quick else LONGEST
    for name, problem in problems(context.device, longest):
        context.measure("error", name, partial(compare_error, attend, problem))
    sizes = Sizes(2, 4, 4, longest // 3, longest, 64)
    skewed = replace(random_problem(sizes, torch.float16, context.device, 0), causal=True)
    context.measure("control", "causal from the wrong corner", partial(control, attend, skewed))


def compare_error(attend: Attend, problem: Problem) -> dict[str, float]:
    """The kernel's errors over those that PyTorch makes on the same numbers.

    Raises:
        WrongResult: the answer has another shape or type than the query, or is more than twice as far off.
    """
    answer, truth = attend(problem), exact(problem)
    if answer.shape != problem.query.shape or answer.dtype != problem.query.dtype:
        raise WrongResult(f"the answer is {tuple(answer.shape)} {answer.dtype}")
    ours, theirs = errors(answer, truth), errors(sdpa(problem), truth)
    if ours[0] == float("inf"):
        raise WrongResult("the answer holds NaN or infinities")
    figures = {
        "of_sdpa_error": max(a / max(b, SMALLEST_ERROR) for a, b in zip(ours, theirs, strict=True)),
        "relative_error": ours[0],
        "sdpa_relative_error": theirs[0],
        "largest_error": ours[1],
        "sdpa_largest_error": theirs[1],
    }
    if figures["of_sdpa_error"] > 2:
        raise WrongResult(f"{figures['of_sdpa_error']:.2g} times SDPA's error", figures)
    return figures


def control(attend: Attend, problem: Problem) -> dict[str, float]:
    """The error, over SDPA's, of a kernel that aligned causality at the upper left."""
    queries, keys = problem.query.shape[2], problem.key.shape[2]
    upper_left = torch.ones(queries, keys, dtype=torch.bool, device=problem.query.device).tril()
    truth = exact(problem)
    wrong = errors(attend(replace(problem, causal=False, mask=upper_left[None, None])), truth)[0]
    return {"of_sdpa_error": wrong / max(errors(sdpa(problem), truth)[0], SMALLEST_ERROR)}


def check_speed(context: Context) -> None:
    """Prefill sizes of 1k to 8k tokens at head dim 128, then 64, dense and causal, and a cache with one query."""
    attend = our_kernel()
    for head_dim in (128, 64):
        for dtype in (torch.bfloat16, torch.float16) if head_dim == 128 else (torch.bfloat16,):
            for name, problem in square_problems(context, head_dim, dtype):
                context.measure(f"head dim {head_dim}", name, partial(compare_speed, attend, problem, context))
    heads = 2 if context.quick else SPEED_HEADS
    for batch, keys in ((2, 48),) if context.quick else ((1, 2940), (8, 2940), (8, 380)):
        problem = random_problem(Sizes(batch, heads, heads, 1, keys, 128), torch.bfloat16, context.device, keys)
        name = f"{batch}×{heads}, one query, {keys} keys, bfloat16"
        context.measure("decoding, head dim 128", name, partial(compare_speed, attend, problem, context))


def square_problems(context: Context, head_dim: int, dtype: torch.dtype) -> Iterator[tuple[str, Problem]]:
    """As many queries as keys and 8,192 in all, causal and dense, by name."""
    lengths, tokens, heads = ((32, 64), 64, 2) if context.quick else (SPEED_LENGTHS, TOKENS, HEADS)
    for length in lengths:
        sizes = Sizes(tokens // length, heads, heads, length, length, head_dim)
        problem = random_problem(sizes, dtype, context.device, length)
        for causal in (True, False):
            shown = f"{sizes.batch}×{heads}×{length}, {'causal' if causal else 'dense'}"
            yield f"{shown}, {str(dtype).removeprefix('torch.')}", replace(problem, causal=causal)


def compare_speed(attend: Attend, problem: Problem, context: Context) -> dict[str, float]:
    """TFLOP/s of the kernel and of PyTorch's backends, which take turns.

    Raises:
        NotRun: PyTorch has no flash attention for the problem.
        WrongResult: the kernel's answer is not PyTorch's.
    """
    runs: dict[str, Callable[[], Tensor]] = {"kernel": partial(attend, problem)}
    runs |= _backends(problem, context.device)
    reference = "sdpa_flash" if context.device == "cuda" else "sdpa"
    if reference not in runs:
        raise NotRun("PyTorch has no flash attention for this problem here")
    difference = errors(runs["kernel"](), runs[reference]().double())[0]
    if not difference <= LARGEST_DIFFERENCE:
        raise WrongResult(f"the answers differ by {difference:.2g} of their size")
    calls = CALLS if context.device == "cuda" else 1
    turns = {name: _several(run, calls) for name, run in runs.items()}
    rounds, warmup = ((2, 2), 0) if context.quick else ((5, 30), 2)
    times = take_turns(turns, context.device, rounds, seconds=0.5, warmup=warmup)
    figures = {f"{name}_tflops": calls * problem.flops / median(spent) / 1e9 for name, spent in times.items()}
    others = [name for name in times if name != "kernel"]
    return figures | {f"of_{name}": ratio(times, name, "kernel") for name in others}


def _several(run: Callable[[], Tensor], calls: int) -> Prepare:
    """Several calls in one CUDA graph, so that neither Python nor launching is timed; one by one where that fails."""
    if calls == 1:
        return lambda: run
    try:
        captured = capture(run, calls)
    except NotRun as error:
        print(f"launched one by one: {error}")
        return lambda: lambda: [run() for _ in range(calls)]
    return lambda: captured


def _backends(problem: Problem, device: str) -> dict[str, Callable[[], Tensor]]:
    """Those of PyTorch's backends that accept the problem."""
    if device != "cuda":
        return {"sdpa": partial(sdpa, problem)}
    known = {"sdpa_flash": SDPBackend.FLASH_ATTENTION, "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION}
    found: dict[str, Callable[[], Tensor]] = {}
    for name, backend in known.items():

        def run(backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return sdpa(problem)

        try:
            run()
        except RuntimeError as error:
            print(f"{name} does not accept the problem: {one_line(error)}")
            continue
        found[name] = run
    return found


def check_library(context: Context) -> None:
    """Build, then the same problems as `check_error` and `check_speed`."""
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
