"""Attention problems to try a kernel on, the exact answer, and how far an answer is from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from toprl_export.seeding import numpy_rng, torch_generator

Attend = Callable[["Problem"], Tensor]
"""Computes ``[b, heads, q, head_dim]``."""
KINDS = (
    "dense", "causal", "causal, keys before", "padding mask", "causal and padding", "full mask", "grouped heads",
    "one query", "one query, padding mask", "strided",
)  # fmt: skip
HEADS = 8
LONGEST = 1500
"""With so many heads, large and small enough that every form of our kernel is tried."""
PADDED = ("padding mask", "causal and padding", "one query, padding mask")


@dataclass(frozen=True)
class Problem:
    """One call of attention.

    Attributes:
        query: ``[b, heads, q, head_dim]``.
        key: ``[b, kv_heads, k, head_dim]``; ``kv_heads`` divides ``heads``.
        value: like ``key``.
        mask: ``bool``, true where a query may attend, broadcastable to ``[b, heads, q, k]``; None: everywhere.
        causal: also that the last query sees every key, the one before it all but the last, and so on.
        scale: factor of the products.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    causal: bool
    scale: float

    @property
    def flops(self) -> float:
        """Of both products, a product and its sum counted as two; half of the square where it is causal."""
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
    """Of a problem."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int


def random_problem(sizes: Sizes, dtype: torch.dtype, device: str, seed: int) -> Problem:
    """Normal numbers, nothing masked."""
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
        place = torch.arange(keys, device=device)
        real = place >= pads
        # The first key stays where causality hides the others from the first query.
        return (real | (place == 0) if kind.startswith("causal") else real)[:, None, None]  # [b, 1, 1, k]
    if kind == "full mask":
        drawn = torch.rand(batch, 1, queries, keys, generator=generator, device=device) < 0.5
        return drawn | torch.eye(queries, keys, dtype=torch.bool, device=device)
    return None


def _strided(x: Tensor) -> Tensor:
    """The same numbers as projections leave them: heads next to each other in every row."""
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
    # Repeated, because with grouped heads and a mask only its slow form in fp32 is left, which nobody competes with.
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
