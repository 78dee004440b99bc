"""Our attention kernel, called from PyTorch, against PyTorch's own: how exact and how fast it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ci.gpu.attention_cases import LONGEST, Attend, Problem, Sizes, errors, exact, problems, random_problem, sdpa
from ci.gpu.context import Context, NotRun, Wrong, one_line
from ci.gpu.timing import Prepare, capture, ratio, take_turns
from ci.gpu.ways import load_kernel

SMALLEST_ERROR = 1e-12
LARGEST_DIFFERENCE = 0.02
"""Between two answers in 16 bits, of their size."""
HEADS = 32
TOKENS = 8192
SPEED_LENGTHS = (1024, 2048, 4096, 8192)
CALLS = 8


def our_kernel() -> Attend:
    """`toprl_flash_attention.kernel.flash_attention` as an `Attend`.

    Raises:
        NotRun: there is no Triton.
    """
    function = load_kernel()

    def attend(problem: Problem) -> Tensor:
        query, key, value = problem.query, problem.key, problem.value
        if query.device.type == "cpu" and query.dtype == torch.bfloat16:
            raise NotRun("Triton's interpreter multiplies bfloat16 as if it were whole numbers")
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
        Wrong: the answer has another shape or type than the query, or is more than twice as far off.
    """
    answer, truth = attend(problem), exact(problem)
    if answer.shape != problem.query.shape or answer.dtype != problem.query.dtype:
        raise Wrong(f"the answer is {tuple(answer.shape)} {answer.dtype}")
    ours, theirs = errors(answer, truth), errors(sdpa(problem), truth)
    if ours[0] == float("inf"):
        raise Wrong("the answer holds NaN or infinities")
    figures = {
        "of_sdpa_error": max(a / max(b, SMALLEST_ERROR) for a, b in zip(ours, theirs, strict=True)),
        "relative_error": ours[0],
        "sdpa_relative_error": theirs[0],
        "largest_error": ours[1],
        "sdpa_largest_error": theirs[1],
    }
    if figures["of_sdpa_error"] > 2:
        raise Wrong(f"{figures['of_sdpa_error']:.2g} times SDPA's error", figures)
    return figures


def control(attend: Attend, problem: Problem) -> dict[str, float]:
    """How many times SDPA's error a kernel would make that counts causality from the upper left."""
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
    heads = 2 if context.quick else HEADS
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
        Wrong: the kernel's answer is not PyTorch's.
    """
    runs: dict[str, Callable[[], Tensor]] = {"kernel": partial(attend, problem)}
    runs |= _backends(problem, context.device)
    reference = "sdpa_flash" if context.device == "cuda" else "sdpa"
    if reference not in runs:
        raise NotRun("PyTorch has no flash attention for this problem here")
    difference = errors(runs["kernel"](), runs[reference]().double())[0]
    if not difference <= LARGEST_DIFFERENCE:
        raise Wrong(f"the answers differ by {difference:.2g} of their size")
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
    """Those of PyTorch's implementations that take the problem."""
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
            print(f"{name} does not take the problem: {one_line(error)}")
            continue
        found[name] = run
    return found
